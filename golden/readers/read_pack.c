/* Read a golden pack with libc alone: copy read_tensor, or build it with cc -o read_pack read_pack.c
   and run read_pack FOLDER [NAME]. Without NAME it lists the tensors; with it, it writes that
   one's bytes to stdout. They are little-endian, in C order. */
#define _FILE_OFFSET_BITS 64
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tensor { char name[304], dtype[16], sizes[512], shard[104]; long long start, bytes; };

/* The next line of index.tsv: 1, or 0 at the end, or -1 where it is not as it should be. */
static int next_tensor(FILE *index, struct tensor *t)
{
    int found = fscanf(index, "%303[^\t\n] %15s %511s %103s %lld %lld %*s ", t->name, t->dtype,
                       t->sizes, t->shard, &t->start, &t->bytes);
    if (found == EOF) return 0;
    return found == 6 && !strpbrk(t->shard, "/\\:") && t->start >= 0 && t->bytes >= 0
        && (unsigned long long)t->bytes < (size_t)-1 ? 1 : -1;
}

/* A tensor's bytes, for free() to release; NULL where they are not all there. */
static void *read_tensor(const char *folder, const struct tensor *t)
{
    char path[4096];
    void *data = NULL;
    FILE *file = snprintf(path, sizeof path, "%s/%s", folder, t->shard) < (int)sizeof path
        ? fopen(path, "rb") : NULL;
    if (file && !fseeko(file, 0, SEEK_END) && t->bytes <= ftello(file) - t->start
        && !fseeko(file, t->start, SEEK_SET) && (data = malloc((size_t)t->bytes + 1))
        && fread(data, 1, (size_t)t->bytes, file) != (size_t)t->bytes)
        free(data), data = NULL;
    if (file) fclose(file);
    return data;
}

int main(int argc, char **argv)
{
    char path[4096];
    struct tensor t;
    int more, found = argc == 2;
    if (argc < 2 || snprintf(path, sizeof path, "%s/index.tsv", argv[1]) >= (int)sizeof path)
        return fprintf(stderr, "usage: read_pack FOLDER [NAME]\n"), 2;
    FILE *index = fopen(path, "rb");
    if (!index) return perror(path), 4;
    while ((more = next_tensor(index, &t)) > 0) {
        if (argc == 2) printf("%s %s %s\n", t.name, t.dtype, t.sizes);
        else if (!strcmp(t.name, argv[2])) {
            void *data = read_tensor(argv[1], &t);
            if (!data) return fprintf(stderr, "%s: not all there\n", t.name), 3;
            if (fwrite(data, 1, (size_t)t.bytes, stdout) != (size_t)t.bytes)
                return perror("stdout"), 4;
            found = 1;
            free(data);
        }
    }
    if (more < 0) return fprintf(stderr, "%s: damaged\n", path), 3;
    if (!found) return fprintf(stderr, "%s: no such tensor in %s\n", argv[2], path), 2;
    return 0;
}
