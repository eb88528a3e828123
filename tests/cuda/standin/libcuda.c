/* A CUDA driver without a GPU, for tests of what stands on it: memory is the host's, copies are made, and a launch asks
   whoever has called standin_kernels() to do the kernel's work. driver_standin.py builds it, as libcuda.so.1.

   STANDIN_DEVICES, _VERSION (13000), _CAPABILITY (80), _MEMORY (bytes): what it says it is, and where it is full.
   STANDIN_FILL: the byte that memory is full of at first (255: NaN).
   STANDIN_FAULT=n: its n-th launch breaks the context, as a kernel that leaves its memory does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API(name) __attribute__((visibility("default"))) int name
typedef void *P;
typedef unsigned long long D;
typedef void (*Launched)(const char *name, const unsigned *shape, P *arguments, long graph);
typedef void (*Replayed)(long graph);
enum { OK, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, BAD_IMAGE = 200, NO_CONTEXT = 201, FAULT = 700, UNSUPPORTED = 801,
       CAPTURING = 900 };
enum { LAUNCHES, CAPTURED, REPLAYS, TO_DEVICE, TO_HOST, ALLOCATED, FREED, HELD, PINNED, LARGEST_SHARED, REFUSED, KINDS };

static long counts[KINDS], graph, graphs;
static int one, broken;
static Launched launched;
static Replayed replayed;

static long set(const char *name, long otherwise) { const char *s = getenv(name); return s ? atol(s) : otherwise; }
static int give(P *p) { *p = calloc(1, 64); return OK; }
static int refuse(int code) { counts[REFUSED]++; return code; }

__attribute__((visibility("default"))) void standin_kernels(Launched l, Replayed r) { launched = l; replayed = r; }
__attribute__((visibility("default"))) long standin_count(int kind) { return counts[kind]; }

API(cuInit)(unsigned flags) { return set("STANDIN_DEVICES", 1) ? OK : NO_DEVICE; }
API(cuDriverGetVersion)(int *v) { *v = set("STANDIN_VERSION", 13000); return OK; }
API(cuDeviceGetCount)(int *n) { *n = set("STANDIN_DEVICES", 1); return OK; }
API(cuDeviceGet)(int *d, int i) { *d = i; return OK; }
API(cuDeviceGetName)(char *s, int n, int d) { snprintf(s, n, "Stand-in"); return OK; }
API(cuDeviceGetUuid_v2)(char *u, int d) { memset(u, 7, 16); return OK; }
API(cuDeviceTotalMem_v2)(size_t *n, int d) { *n = set("STANDIN_MEMORY", 1L << 30); return OK; }
API(cuDeviceGetAttribute)(int *v, int a, int d) {
  int capability = set("STANDIN_CAPABILITY", 80);
  *v = a == 75 ? capability / 10 : a == 76 ? capability % 10 : a == 16 ? 108 : a == 10 ? 32 : a == 1 ? 1024
    : a == 8 ? 49152 : a == 97 ? 166912 : 1;
  return OK; }
static __thread P context; /* each thread has its own, none at first */
API(cuCtxGetCurrent)(P *c) { *c = context; return OK; }
API(cuCtxSetCurrent)(P c) { context = c; return OK; }
API(cuCtxPushCurrent_v2)(P c) { return OK; }
API(cuCtxPopCurrent_v2)(P *c) { if (c) *c = context; return OK; }
API(cuCtxGetDevice)(int *d) { *d = 0; return OK; }
API(cuCtxGetDevice_v2)(int *d, P c) { *d = 0; return OK; }
API(cuCtxGetId)(P c, D *i) { *i = 1; return OK; }
API(cuDevicePrimaryCtxRetain)(P *c, int d) { *c = &one; return OK; }
API(cuDevicePrimaryCtxRelease_v2)(int d) { return OK; }
API(cuDevicePrimaryCtxGetState)(int d, unsigned *f, int *a) { *f = 0; *a = 1; return OK; }

/* Memory: a size is kept before each piece. */
API(cuMemGetInfo_v2)(size_t *f, size_t *t) {
  if (!context) return refuse(NO_CONTEXT);
  *t = set("STANDIN_MEMORY", 1L << 30); *f = *t - counts[HELD]; return OK; }
API(cuMemAlloc_v2)(D *p, size_t n) {
  if (graph || !context) return refuse(graph ? CAPTURING : NO_CONTEXT);
  if (counts[HELD] + (long)n > set("STANDIN_MEMORY", 1L << 30)) return refuse(NO_MEMORY);
  char *memory = aligned_alloc(256, (n + 511) & ~255ull);
  *(size_t *)memory = n; counts[HELD] += n; counts[ALLOCATED]++;
  memset(memory + 256, set("STANDIN_FILL", 0xFF), n);
  *p = (D)(memory + 256); return OK; }
API(cuMemFree_v2)(D p) {
  if (graph) return refuse(CAPTURING);
  char *memory = (char *)p - 256;
  counts[HELD] -= *(size_t *)memory; counts[FREED]++; free(memory); return OK; }
API(cuMemHostAlloc)(P *p, size_t n, unsigned f) {
  *p = aligned_alloc(4096, (n + 4095) & ~4095ull); counts[PINNED]++; return OK; }
API(cuMemFreeHost)(P p) { free(p); counts[PINNED]--; return OK; }
static int copy(P to, P from, size_t n, int kind) {
  if (broken) return FAULT;
  if (graph) return refuse(CAPTURING);
  memcpy(to, from, n); counts[kind]++; return OK; }
/* A copy from pinned memory happens as late as it may: when its stream or an event after it is waited for. */
static struct { P to, from, stream; size_t n; long turn; } pending[64];
static long turns, waiting;
static void finish(P stream, long until) {
  long kept = 0;
  for (long i = 0; i < waiting; i++)
    if (pending[i].stream == stream && pending[i].turn < until) memcpy(pending[i].to, pending[i].from, pending[i].n);
    else pending[kept++] = pending[i];
  waiting = kept; }
API(cuMemcpyHtoDAsync_v2)(D d, P s, size_t n, P stream) {
  if (broken) return FAULT;
  if (graph || waiting == 64) return refuse(CAPTURING);
  pending[waiting].to = (P)d; pending[waiting].from = s; pending[waiting].stream = stream;
  pending[waiting].n = n; pending[waiting++].turn = turns++;
  counts[TO_DEVICE]++; return OK; }
API(cuMemcpyDtoH_v2)(P d, D s, size_t n) { return copy(d, (P)s, n, TO_HOST); }

/* Streams and events: all else is done when it is asked for. */
struct Event { P stream; long turn; };
API(cuStreamCreate)(P *s, unsigned f) { return give(s); }
API(cuStreamCreateWithPriority)(P *s, unsigned f, int p) { return give(s); }
API(cuStreamDestroy_v2)(P s) { return OK; }
API(cuStreamGetCtx)(P s, P *c) { *c = &one; return OK; }
API(cuStreamGetCtx_v2)(P s, P *c, P *g) { *c = &one; if (g) *g = 0; return OK; }
API(cuStreamGetDevice)(P s, int *d) { *d = 0; return OK; }
API(cuStreamGetFlags)(P s, unsigned *f) { *f = 1; return OK; }
API(cuStreamGetPriority)(P s, int *p) { *p = 0; return OK; }
API(cuCtxGetStreamPriorityRange)(int *low, int *high) { *low = 0; *high = -1; return OK; }
API(cuStreamSynchronize)(P s) {
  if (broken || graph) return broken ? FAULT : refuse(CAPTURING);
  finish(s, turns); return OK; }
API(cuCtxSynchronize)(void) { return broken ? FAULT : graph ? refuse(CAPTURING) : OK; }
API(cuStreamWaitEvent)(P s, struct Event *e, unsigned f) {
  if (graph) return refuse(CAPTURING);
  finish(e->stream, e->turn); return OK; }
API(cuEventCreate)(P *e, unsigned f) { return give(e); }
API(cuEventDestroy_v2)(P e) { return OK; }
API(cuEventRecord)(struct Event *e, P s) {
  if (graph) return refuse(CAPTURING);
  e->stream = s; e->turn = turns; return OK; }
API(cuEventSynchronize)(struct Event *e) {
  if (broken) return FAULT;
  finish(e->stream, e->turn); return OK; }

/* Kernels: a handle is the kernel's name. */
API(cuLibraryLoadData)(P *l, const char *code, P a, P b, unsigned n, P d, P e, unsigned m) {
  if (memcmp(code, "\x7f" "ELF", 4)) return BAD_IMAGE;
  return graph ? refuse(CAPTURING) : give(l); }
API(cuLibraryUnload)(P l) { return OK; }
API(cuLibraryGetKernel)(P *k, P l, const char *name) { *k = strdup(name); return OK; }
API(cuKernelGetLibrary)(P *l, P k) { return give(l); }
API(cuKernelGetFunction)(P *f, P k) { *f = k; return OK; }
API(cuFuncLoad)(P f) { return OK; }
API(cuKernelGetName)(const char **n, P k) { *n = k; return OK; }
API(cuKernelGetParamInfo)(P k, size_t i, size_t *o, size_t *s) { return INVALID; }
API(cuKernelGetAttribute)(int *v, int a, P k, int d) { *v = 0; return OK; }
API(cuKernelSetAttribute)(int a, int v, P k, int d) {
  if (a == 8 && v > (set("STANDIN_CAPABILITY", 80) >= 90 ? 232448 : 166912)) return INVALID;
  if (a == 8 && v > counts[LARGEST_SHARED]) counts[LARGEST_SHARED] = v;
  return OK; }
struct Config { unsigned shape[7]; P stream, attributes; unsigned count; };
API(cuLaunchKernelEx)(const struct Config *config, P kernel, P *arguments, P *extra) {
  if (broken) return FAULT;
  if (!context) return refuse(NO_CONTEXT);
  if (config->shape[6] > 49152 && config->shape[6] > counts[LARGEST_SHARED]) return refuse(INVALID);
  for (int i = 0; i < 6; i++) if (!config->shape[i]) return refuse(INVALID);
  counts[graph ? CAPTURED : LAUNCHES]++;
  if (counts[LAUNCHES] == set("STANDIN_FAULT", 0)) { broken = 1; return getenv("CUDA_LAUNCH_BLOCKING") ? FAULT : OK; }
  if (launched) launched(kernel, config->shape, arguments, graph);
  return OK; }
API(cuLaunchKernel)(P f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned s, P stream,
                    P *arguments, P *extra) {
  struct Config config = {{a, b, c, d, e, g, s}, stream, 0, 0};
  return cuLaunchKernelEx(&config, f, arguments, extra); }

/* Graphs: a handle is its number. */
API(cuStreamBeginCapture_v2)(P s, int mode) { if (graph) return refuse(CAPTURING); graph = ++graphs; return OK; }
API(cuStreamEndCapture)(P s, P *g) { *g = (P)graph; graph = 0; return *g ? OK : refuse(INVALID); }
API(cuStreamIsCapturing)(P s, int *status) { *status = graph != 0; return OK; }
API(cuStreamGetCaptureInfo_v3)(P s, int *status, D *id, P *g, P *nodes, P *edges, size_t *n) {
  *status = graph != 0; if (id) *id = graph; if (g) *g = (P)graph; if (n) *n = 0; return OK; }
API(cuStreamGetCaptureInfo_v2)(P s, int *status, D *id, P *g, P *nodes, size_t *n) {
  *status = graph != 0; if (id) *id = graph; if (g) *g = (P)graph; if (n) *n = 0; return OK; }
API(cuGraphInstantiateWithParams)(P *e, P g, int *parameters) { *e = g; return OK; }
API(cuGraphInstantiateWithFlags)(P *e, P g, D flags) { *e = g; return OK; }
API(cuGraphUpload)(P e, P s) { return OK; }
API(cuGraphLaunch)(P e, P s) {
  if (broken) return FAULT;
  counts[REPLAYS]++;
  if (replayed) replayed((long)e);
  return OK; }
API(cuGraphDestroy)(P g) { return OK; }
API(cuGraphExecDestroy)(P e) { return OK; }
API(cuUserObjectCreate)(P *o, P p, P f, unsigned n, unsigned flags) { return give(o); }
API(cuUserObjectRelease)(P o, unsigned n) { return OK; }
API(cuGraphRetainUserObject)(P g, P o, unsigned n, unsigned flags) { return OK; }

static const char *name_of(int e) {
  return e == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : e == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
    : e == FAULT ? "CUDA_ERROR_ILLEGAL_ADDRESS" : e == CAPTURING ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    : e == BAD_IMAGE ? "CUDA_ERROR_INVALID_IMAGE" : "CUDA_ERROR_UNKNOWN"; }
API(cuGetErrorName)(int e, const char **s) { *s = name_of(e); return OK; }
API(cuGetErrorString)(int e, const char **s) { *s = "said by the stand-in"; return OK; }
API(cuGetExportTable)(P *t, P u) { return INVALID; }
static int unsupported(void) { return UNSUPPORTED; }
API(cuGetProcAddress_v2)(const char *name, P *f, int version, uint64_t flags, int *status) {
  const char *tails[] = {"_v2", "", "_v3"};
  char whole[128];
  Dl_info me;
  dladdr((P)cuInit, &me);
  P self = dlopen(me.dli_fname, RTLD_NOW);
  *f = 0;
  for (int i = 0; i < 3 && !*f; i++) { snprintf(whole, sizeof whole, "%s%s", name, tails[i]); *f = dlsym(self, whole); }
  if (!*f && getenv("STANDIN_TRACE")) fprintf(stderr, "no %s\n", name);
  if (!*f) *f = (P)unsupported;
  if (status) *status = 0;
  return OK; }
API(cuGetProcAddress)(const char *name, P *f, int v, uint64_t flags) { return cuGetProcAddress_v2(name, f, v, flags, 0); }
