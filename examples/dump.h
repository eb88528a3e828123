/* Write tensors as refsd golden compare, bisect and same read them. C99, libc alone.

       struct dump mine = dump_open("mine");             the folder is there already
       size_t shape[] = {2, 320, 64, 64};                logical, N C H W, whatever the layout
       dump_tensor(&mine, "unet/000/conv_in", DUMP_BFLOAT16, "NHWC", 4, shape, data, bytes);
       if (dump_close(&mine)) return 1;                  something could not be written

   data is in the host's memory (little-endian), with the padding of its layout if that has one;
   layout is NULL where the bytes lie in the order of shape. Each tensor is an .npy file that NumPy
   reads too, bfloat16 as uint16, and a line of index.json. */
#ifndef REFSD_DUMP_H
#define REFSD_DUMP_H
#include <stdio.h>
#include <string.h>

enum dump_type { DUMP_FLOAT32, DUMP_FLOAT16, DUMP_BFLOAT16, DUMP_INT64 };
struct dump { char folder[2048]; FILE *index; int count, failed; };

static inline FILE *dump_file(struct dump *d, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", d->folder, name);
    return fopen(path, "wb");
}

static inline struct dump dump_open(const char *folder)
{
    struct dump d = {"", NULL, 0, strlen(folder) >= sizeof d.folder};
    if (!d.failed) strcpy(d.folder, folder);
    d.index = d.failed ? NULL : dump_file(&d, "index.json");
    d.failed = !d.index || fputs("{\"tensors\": {", d.index) < 0;
    return d;
}

static inline void dump_tensor(struct dump *d, const char *name, enum dump_type type,
                               const char *layout, int axes, const size_t *shape,
                               const void *data, size_t bytes)
{
    static const struct { const char *name, *numpy; size_t size; } types[] = {
        {"float32", "<f4", 4}, {"float16", "<f2", 2}, {"bfloat16", "<u2", 2}, {"int64", "<i8", 8}};
    char file[32], sizes[180] = "", stored[32], header[256] = "\x93NUMPY\x01\0\xf6\0";
    if (d->failed || axes > 8) { d->failed = 1; return; }
    for (int i = 0; i < axes; i++)
        sprintf(sizes + strlen(sizes), "%s%zu", i ? ", " : "", shape[i]);
    sprintf(stored, "%zu", bytes / types[type].size);
    int end = 10 + sprintf(header + 10, "{'descr': '%s', 'fortran_order': False, 'shape': (%s%s), }",
                           types[type].numpy, layout ? stored : sizes, layout || axes ? "," : "");
    memset(header + end, ' ', sizeof header - 1 - (size_t)end);
    header[sizeof header - 1] = '\n';
    sprintf(file, "%05d.npy", d->count);
    fprintf(d->index, "%s\n\"", d->count++ ? "," : "");
    for (; *name; name++) fprintf(d->index, *name == '"' || *name == '\\' ? "\\%c" : "%c", *name);
    fprintf(d->index, "\": {\"file\": \"%s\", \"offset\": %zu, \"shape\": [%s], \"dtype\": \"%s\"",
            file, sizeof header, sizes, types[type].name);
    if (layout) fprintf(d->index, ", \"layout\": \"%s\"", layout);
    fputs("}", d->index);
    FILE *out = dump_file(d, file);
    d->failed = !out || fwrite(header, 1, sizeof header, out) != sizeof header
        || fwrite(data, 1, bytes, out) != bytes;
    if (out && fclose(out)) d->failed = 1;
}

/* 0 when everything was written. */
static inline int dump_close(struct dump *d)
{
    if (d->index && (fputs("\n}}\n", d->index) < 0 || ferror(d->index))) d->failed = 1;
    if (d->index && fclose(d->index)) d->failed = 1;
    d->index = NULL;
    return d->failed;
}
#endif
