/* Run a port's ops on the cases of a pack of ops, and dump what they give. From refsd's folder:

       cc -O2 -o run_ops examples/run_ops.c -lm && mkdir mine && ./run_ops golden/ops/norm mine
       refsd golden compare golden/ops/norm mine

   The loop is main; of the three ops each is to be replaced by a call of the port's own: to the
   device, run, back. Others are further lines of `ops`; cases of ops without one are left out. */
#define main read_pack
#include "../golden/readers/read_pack.c"
#undef main
#include "dump.h"
#include <math.h>

enum { AXES = 8, INPUTS = 8 };
struct array { char name[304]; size_t shape[AXES], count; int axes; float *data; };
struct call { struct array in[INPUTS], out; int inputs; const char *about; };

/* An input by its parameter; every case has all those that its op needs. */
static const struct array *input(const struct call *c, const char *parameter)
{
    for (int i = 0; i < c->inputs; i++)
        if (!strcmp(strrchr(c->in[i].name, ':') + 1, parameter)) return &c->in[i];
    fprintf(stderr, "%s: no input %s\n", c->out.name, parameter);
    exit(3);
}

/* An option that is a number, such as "groups". */
static double option(const struct call *c, const char *name)
{
    char key[64];
    snprintf(key, sizeof key, "\"%s\": ", name);
    const char *found = strstr(strstr(c->about, "\"options\": {"), key);
    return found ? strtod(found + strlen(key), NULL) : NAN;
}

static void silu(struct call *c)
{
    const struct array *x = input(c, "x");
    for (size_t i = 0; i < x->count; i++) c->out.data[i] = x->data[i] / (1 + expf(-x->data[i]));
}

static void linear(struct call *c)
{
    const struct array *x = input(c, "x"), *w = input(c, "weight");
    size_t outputs = w->shape[0], inputs = w->shape[1];
    const float *bias = strstr(c->about, ":bias\"") ? input(c, "bias")->data : NULL;
    for (size_t i = 0; i < c->out.count; i++) {
        float sum = bias ? bias[i % outputs] : 0;
        for (size_t k = 0; k < inputs; k++)
            sum += x->data[i / outputs * inputs + k] * w->data[i % outputs * inputs + k];
        c->out.data[i] = sum;
    }
}

static void group_norm(struct call *c)
{
    const struct array *x = input(c, "x"), *w = input(c, "weight"), *b = input(c, "bias");
    size_t groups = (size_t)option(c, "groups"), channels = x->shape[1];
    size_t pixels = x->count / x->shape[0] / channels, size = channels / groups * pixels;
    for (size_t start = 0; start < x->count; start += size) {
        double mean = 0, variance = 0;
        for (size_t i = start; i < start + size; i++) mean += x->data[i] / (double)size;
        for (size_t i = start; i < start + size; i++)
            variance += (x->data[i] - mean) * (x->data[i] - mean) / (double)size;
        double scale = 1 / sqrt(variance + option(c, "eps"));
        for (size_t i = start; i < start + size; i++) {
            size_t channel = i / pixels % channels;
            c->out.data[i] = (float)((x->data[i] - mean) * scale) * w->data[channel]
                + b->data[channel];
        }
    }
}

static const struct { const char *name; void (*run)(struct call *); } ops[] = {
    {"silu", silu}, {"linear", linear}, {"group_norm", group_norm}};

static struct array array_of(const struct tensor *t)
{
    struct array a = {.count = 1};
    char *at = (char *)t->sizes;
    strcpy(a.name, t->name);
    while (*at && *at != '-' && a.axes < AXES) {
        a.count *= a.shape[a.axes++] = (size_t)strtoull(at, &at, 10);
        at += *at == 'x';
    }
    return a;
}

int main(int argc, char **argv)
{
    char path[4096];
    static char *line;
    size_t room = 0;
    int more = 0, ran = 0;
    struct tensor t;
    static struct call c;
    if (argc != 3) return fprintf(stderr, "usage: run_ops PACK FOLDER\n"), 2;
    snprintf(path, sizeof path, "%s/index.tsv", argv[1]);
    FILE *index = fopen(path, "rb");
    snprintf(path, sizeof path, "%s/manifest.json", argv[1]);
    FILE *manifest = fopen(path, "rb");
    if (!index || !manifest) return perror(argv[1]), 4;
    struct dump mine = dump_open(argv[2]);
    while (getline(&line, &room, manifest) > 0 && strncmp(line, "\"tensors\"", 9)) {}
    /* Both have the tensors in the same order, a line each: a case's inputs, then its result. */
    while ((more = next_tensor(index, &t)) > 0 && getline(&line, &room, manifest) > 0) {
        struct array a = array_of(&t);
        if (a.count * (strcmp(t.dtype, "int64") ? 4 : 8) != (size_t)t.bytes) {
            more = -1;
            break;
        }
        if (strchr(t.name, ':') && c.inputs < INPUTS) {
            if (!(a.data = read_tensor(argv[1], &t))) return perror(t.name), 4;
            c.in[c.inputs++] = a;
            continue;
        }
        for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
            size_t n = strlen(ops[i].name);
            if (strncmp(t.name + 4, ops[i].name, n) || t.name[4 + n] != '/') continue;
            c.out = a, c.about = line;
            if (!(c.out.data = malloc((size_t)t.bytes + 1))) return perror(t.name), 4;
            ops[i].run(&c);
            dump_tensor(&mine, t.name, DUMP_FLOAT32, NULL, a.axes, a.shape, c.out.data,
                        (size_t)t.bytes);
            free(c.out.data);
            ran++;
        }
        while (c.inputs) free(c.in[--c.inputs].data);
    }
    free(line), fclose(index), fclose(manifest);
    if (dump_close(&mine)) return perror(argv[2]), 4;
    if (more < 0) return fprintf(stderr, "%s: damaged\n", argv[1]), 3;
    return printf("%d cases in %s\n", ran, argv[2]) < 0;
}
