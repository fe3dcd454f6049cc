/* A card that is not there, for tests: the CUDA runtime and its libraries as torch calls them, answered on the
   host.

   Device memory is host memory and real copies are made, but a kernel does nothing but pass time: whatever is
   computed is garbage, and no time means anything. What is real is torch's side of it: allocator, streams, events,
   capture. One queue stands for all streams. Settings: CARD_TOTAL_MIB of memory; CARD_LOSE_AFTER so many kernels
   the card is lost. All that torch names and that is not here answers 0, which stub_card.py adds. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define MIB (1024ull * 1024)
#define CLOCK 1.755 /* cycles of the spin kernel per nanosecond */
#define KERNEL 3000 /* nanoseconds of any other */

typedef struct {
    int64_t work;
    long nodes;
    int open, valid, global;
    uint64_t id;
} Graph;
struct CUstream_st {
    Graph *capture;
};
struct CUevent_st {
    int64_t at;
    Graph *capture;
};
typedef struct {
    char *at;
    size_t size;
    int host;
} Block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block *blocks;
static size_t block_count, block_room, used;
static int64_t idle_at; /* when all that was enqueued is done */
static long launches, captures, global_captures;
static int lost;
static uint64_t graph_ids;
static __thread cudaError_t last;
static __thread enum cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
static __thread struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} configuration;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}
static void wait_until(int64_t at) {
    int64_t left;
    while ((left = at - now()) > 0) {
        if (left > 60000) {
            struct timespec t = {left / 1000000000, left % 1000000000};
            nanosleep(&t, NULL);
        }
    }
}
static cudaError_t say(cudaError_t error) {
    if (error) last = error;
    return error;
}
#define ENTER pthread_mutex_lock(&lock)
#define LEAVE(e)                                                                                                  \
    do {                                                                                                          \
        cudaError_t e_ = (e);                                                                                     \
        pthread_mutex_unlock(&lock);                                                                              \
        return say(e_);                                                                                           \
    } while (0)
#define ALIVE                                                                                                     \
    if (lost) LEAVE(cudaErrorIllegalAddress)

/* Settings are looked up when they are needed: a process may be the fork of one that has others. */
static size_t total(void) {
    const char *text = getenv("CARD_TOTAL_MIB");
    return (text ? strtoull(text, NULL, 10) : 81559) * MIB;
}

static Graph *capture_of(cudaStream_t s) {
    return (uintptr_t)s > 2 && s->capture && s->capture->open ? s->capture : NULL;
}
static int unsafe(void) { /* a call that no capture in global mode allows */
    return global_captures > 0 && mode != cudaStreamCaptureModeRelaxed;
}
static void enqueue(cudaStream_t s, int64_t work) {
    Graph *g = capture_of(s);
    if (g) {
        g->work += work;
        g->nodes++;
        return;
    }
    int64_t t = now();
    idle_at = (idle_at > t ? idle_at : t) + work;
}

/* kernels */
typedef struct {
    const void *host;
    const char *name;
} Kernel;
static Kernel *kernels;
static size_t kernel_count, kernel_room;
static int sorted;
static int by_host(const void *a, const void *b) {
    const Kernel *x = a, *y = b;
    return x->host < y->host ? -1 : x->host > y->host;
}
void **__cudaRegisterFatBinary(void *f) {
    static void *h[2];
    return h;
}
void __cudaRegisterFatBinaryEnd(void **h) {}
void __cudaUnregisterFatBinary(void **h) {}
char __cudaInitModule(void **h) { return 1; }
void __cudaRegisterVar(void **h, char *v, char *d, const char *n, int e, size_t s, int c, int g) {}
void __cudaRegisterFunction(
    void **h, const char *host, char *d, const char *name, int l, void *a, void *b, void *c, void *e, int *w) {
    ENTER;
    if (kernel_count == kernel_room)
        kernels = realloc(kernels, (kernel_room = kernel_room * 2 + 1024) * sizeof *kernels);
    kernels[kernel_count++] = (Kernel){host, name};
    sorted = 0;
    pthread_mutex_unlock(&lock);
}
static const char *name_of(const void *host) {
    if (!sorted) {
        qsort(kernels, kernel_count, sizeof *kernels, by_host);
        sorted = 1;
    }
    Kernel key = {host, NULL}, *found = bsearch(&key, kernels, kernel_count, sizeof *kernels, by_host);
    return found ? found->name : "?";
}
static cudaError_t launch(const void *f, dim3 grid, dim3 block, void **args, cudaStream_t s) {
    ENTER;
    ALIVE;
    const char *end = getenv("CARD_LOSE_AFTER");
    if (end && launches >= strtol(end, NULL, 10)) {
        lost = 1;
        LEAVE(cudaErrorIllegalAddress);
    }
    launches++;
    const char *name = name_of(f);
    double threads = (double)grid.x * grid.y * grid.z * block.x * block.y * block.z;
    int64_t work = KERNEL + (int64_t)(threads * 0.002);
    if (args && strstr(name, "spin_kernel")) work = (int64_t)(*(int64_t *)args[0] / CLOCK);
    enqueue(s, work);
    LEAVE(cudaSuccess);
}
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t sh, cudaStream_t s) {
    return launch(f, g, b, a, s);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void **a, size_t sh, cudaStream_t s) {
    return launch(f, g, b, a, s);
}
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t sh, cudaStream_t s) {
    return launch(f, g, b, a, s);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) {
    return launch(f, c->gridDim, c->blockDim, a, c->stream);
}
cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) {
    *k = (cudaKernel_t)f;
    return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t sh, struct CUstream_st *s) {
    configuration.grid = g;
    configuration.block = b;
    configuration.shared = sh;
    configuration.stream = s;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *sh, void *s) {
    *g = configuration.grid;
    *b = configuration.block;
    *sh = configuration.shared;
    *(cudaStream_t *)s = configuration.stream;
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->ptxVersion = a->binaryVersion = 90;
    a->maxDynamicSharedSizeBytes = 232448;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t s) {
    *n = 2;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *n, const void *f, int b, size_t s, unsigned fl) {
    *n = 2;
    return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void **p, const void *s) {
    static char spare[1 << 16];
    *p = spare;
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *d) {
    if (!capture_of(s)) f(d);
    return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *d, unsigned fl) {
    f(s, cudaSuccess, d);
    return cudaSuccess;
}

/* the device */
cudaError_t cudaGetDeviceCount(int *n) {
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *n) {
    *n = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int n) {
    return say(n ? cudaErrorInvalidDevice : lost ? cudaErrorIllegalAddress : cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int *v) {
    *v = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *v) {
    *v = 13000;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *l, int *g) {
    *l = 0;
    *g = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *t, int n, int d) {
    snprintf(t, n, "00000000:01:00.0");
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *y, int a, int b) {
    *y = 0;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
    if (d) return say(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    strcpy(p->name, "Stub H100");
    memset(&p->uuid, 0x5a, sizeof p->uuid);
    p->totalGlobalMem = total();
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerMultiprocessor = 233472;
    p->sharedMemPerBlockOptin = 232448;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->memPitch = 2147483647;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->major = 9;
    p->minor = 0;
    p->textureAlignment = 512;
    p->multiProcessorCount = 132;
    p->canMapHostMemory = 1;
    p->concurrentKernels = 1;
    p->unifiedAddressing = 1;
    p->memoryBusWidth = 5120;
    p->l2CacheSize = 50 * MIB;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->cooperativeLaunch = 1;
    p->asyncEngineCount = 3;
    p->managedMemory = 1;
    p->streamPrioritiesSupported = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, 0);
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *v = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *v = 64; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = 233472; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *v = 65536; break;
    case cudaDevAttrClockRate: *v = 1755000; break;
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *v = 32; break;
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrL2CacheSize: *v = 50 * MIB; break;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrUnifiedAddressing: *v = 1; break;
    default: *v = 0;
    }
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
    cudaError_t e = last;
    last = lost ? cudaErrorIllegalAddress : cudaSuccess;
    return e ? e : last;
}
cudaError_t cudaPeekAtLastError(void) { return last ? last : lost ? cudaErrorIllegalAddress : cudaSuccess; }
const char *cudaGetErrorName(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation"
           : e == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress"
                                          : "cudaErrorOther";
}
const char *cudaGetErrorString(cudaError_t e) {
    switch ((int)e) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    default: return "some error of the stub card";
    }
}
cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **f, unsigned v, unsigned long long fl, enum cudaDriverEntryPointQueryResult *r) {
    static int (*any)(void);
    if (!any) any = dlsym(RTLD_DEFAULT, "cardNothing");
    *f = dlsym(RTLD_DEFAULT, name);
    if (!*f) *f = (void *)any;
    if (r) *r = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

/* memory */
static size_t find(const void *p) {
    for (size_t i = 0; i < block_count; i++)
        if ((char *)p >= blocks[i].at && (char *)p < blocks[i].at + blocks[i].size) return i;
    return block_count;
}
static void add(void *p, size_t size, int host) {
    if (block_count == block_room) blocks = realloc(blocks, (block_room = block_room * 2 + 64) * sizeof *blocks);
    blocks[block_count++] = (Block){p, size, host};
    if (!host) used += size;
}
static cudaError_t take(void **p, size_t size, int host) {
    size = (size + 2 * MIB - 1) & ~(2 * MIB - 1);
    if (!host && used + size > total() - 512 * MIB) {
        *p = NULL;
        return cudaErrorMemoryAllocation;
    }
    *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*p == MAP_FAILED) {
        *p = NULL;
        return cudaErrorMemoryAllocation;
    }
    add(*p, size, host);
    return cudaSuccess;
}
static cudaError_t drop(void *p) {
    if (!p) return cudaSuccess;
    size_t i = find(p);
    if (i == block_count) return cudaErrorInvalidValue;
    munmap(blocks[i].at, blocks[i].size);
    if (!blocks[i].host) used -= blocks[i].size;
    blocks[i] = blocks[--block_count];
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t n) {
    ENTER;
    ALIVE;
    if (unsafe()) LEAVE(cudaErrorStreamCaptureUnsupported);
    LEAVE(take(p, n, 0));
}
cudaError_t cudaFree(void *p) {
    ENTER;
    ALIVE;
    if (p && unsafe()) LEAVE(cudaErrorStreamCaptureUnsupported);
    LEAVE(drop(p));
}
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) {
    ENTER;
    ALIVE;
    LEAVE(take(p, n, 1));
}
cudaError_t cudaFreeHost(void *p) {
    ENTER;
    LEAVE(drop(p));
}
cudaError_t cudaMemGetInfo(size_t *f, size_t *t) {
    ENTER;
    ALIVE;
    *t = total();
    *f = total() - 512 * MIB - used;
    LEAVE(cudaSuccess);
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    ENTER;
    memset(a, 0, sizeof *a);
    size_t i = find(p);
    a->type = i == block_count ? cudaMemoryTypeUnregistered
              : blocks[i].host ? cudaMemoryTypeHost
                               : cudaMemoryTypeDevice;
    a->device = 0;
    a->devicePointer = a->hostPointer = (void *)p;
    LEAVE(cudaSuccess);
}
static cudaError_t copy(void *d, const void *s, size_t n, cudaStream_t stream) {
    ENTER;
    ALIVE;
    enqueue(stream, 1000 + n / 1000);
    if (!capture_of(stream)) memmove(d, s, n);
    LEAVE(cudaSuccess);
}
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t t) {
    return copy(d, s, n, t);
}
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) {
    if (unsafe()) return say(cudaErrorStreamCaptureUnsupported);
    cudaError_t e = copy(d, s, n, 0);
    wait_until(idle_at);
    return e;
}
cudaError_t cudaMemcpyPeerAsync(void *d, int a, const void *s, int b, size_t n, cudaStream_t t) {
    return copy(d, s, n, t);
}
cudaError_t cudaMemcpy2DAsync(
    void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h, enum cudaMemcpyKind k, cudaStream_t t) {
    ENTER;
    ALIVE;
    enqueue(t, 1000);
    if (!capture_of(t))
        for (size_t i = 0; i < h; i++) memmove((char *)d + i * dp, (char *)s + i * sp, w);
    LEAVE(cudaSuccess);
}
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) {
    ENTER;
    ALIVE;
    enqueue(s, 1500 + n / 3000);
    if (!capture_of(s) && (v || n < MIB))
        memset(p, v, n);
    else if (!capture_of(s)) {
        uintptr_t a = ((uintptr_t)p + 4095) & ~4095ull, b = ((uintptr_t)p + n) & ~4095ull;
        memset(p, 0, a - (uintptr_t)p);
        memset((void *)b, 0, (uintptr_t)p + n - b);
        madvise((void *)a, b - a, MADV_DONTNEED);
    }
    LEAVE(cudaSuccess);
}
cudaError_t cudaMemset(void *p, int v, size_t n) { return cudaMemsetAsync(p, v, n, 0); }

/* streams and events */
static cudaError_t stream(cudaStream_t *s) {
    *s = calloc(1, sizeof **s);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return stream(s); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { return stream(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { return stream(s); }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) {
    *p = 0;
    return cudaSuccess;
}
static cudaError_t synchronise(cudaStream_t s, int all) {
    ENTER;
    ALIVE;
    if ((all && unsafe()) || capture_of(s)) {
        if (capture_of(s)) capture_of(s)->valid = 0;
        LEAVE(cudaErrorStreamCaptureUnsupported);
    }
    int64_t until = idle_at;
    pthread_mutex_unlock(&lock);
    wait_until(until);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return synchronise(s, (uintptr_t)s <= 2); }
cudaError_t cudaDeviceSynchronize(void) { return synchronise(0, 1); }
cudaError_t cudaStreamQuery(cudaStream_t s) {
    ENTER;
    ALIVE;
    if (capture_of(s)) LEAVE(cudaErrorStreamCaptureUnsupported);
    int r = now() >= idle_at;
    pthread_mutex_unlock(&lock);
    return r ? 0 : say(cudaErrorNotReady);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) {
    ENTER;
    ALIVE;
    if (e->capture && e->capture->open && (uintptr_t)s > 2) s->capture = e->capture;
    LEAVE(cudaSuccess);
}
cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = calloc(1, sizeof **e);
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free(e);
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) {
    ENTER;
    ALIVE;
    e->capture = capture_of(s);
    enqueue(s, 200);
    if (!e->capture) e->at = idle_at;
    LEAVE(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return cudaEventRecordWithFlags(e, s, 0); }
cudaError_t cudaEventQuery(cudaEvent_t e) {
    ENTER;
    ALIVE;
    if (e->capture) LEAVE(cudaErrorCapturedEvent);
    if (unsafe()) LEAVE(cudaErrorStreamCaptureUnsupported);
    LEAVE(now() >= e->at ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    ENTER;
    ALIVE;
    int64_t at = e->at;
    pthread_mutex_unlock(&lock);
    wait_until(at);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    ENTER;
    ALIVE;
    if (now() < b->at || now() < a->at) LEAVE(cudaErrorNotReady);
    *ms = (float)((b->at - a->at) * 1e-6);
    LEAVE(cudaSuccess);
}

/* graphs */
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) {
    enum cudaStreamCaptureMode old = mode;
    mode = *m;
    *m = old;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
    ENTER;
    ALIVE;
    if ((uintptr_t)s <= 2 || capture_of(s)) LEAVE(cudaErrorStreamCaptureUnsupported);
    s->capture = calloc(1, sizeof(Graph));
    *s->capture = (Graph){.open = 1, .valid = 1, .global = m == cudaStreamCaptureModeGlobal, .id = ++graph_ids};
    captures++;
    global_captures += s->capture->global;
    LEAVE(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    ENTER;
    Graph *made = capture_of(s);
    *g = NULL;
    if (!made) LEAVE(cudaErrorIllegalState);
    made->open = 0; /* for the streams that joined it too */
    captures--;
    global_captures -= made->global;
    if (lost) LEAVE(cudaErrorIllegalAddress);
    if (!made->valid) LEAVE(cudaErrorStreamCaptureInvalidated);
    *g = (cudaGraph_t)made;
    LEAVE(cudaSuccess);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) {
    if (lost) return say(cudaErrorIllegalAddress);
    Graph *g = capture_of(s);
    *c = !g         ? cudaStreamCaptureStatusNone
         : g->valid ? cudaStreamCaptureStatusActive
                    : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id,
    cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **ed, size_t *n) {
    Graph *capture = capture_of(s);
    cudaStreamIsCapturing(s, c);
    if (id) *id = capture ? capture->id : 0;
    if (g) *g = (cudaGraph_t)capture;
    if (d) *d = NULL;
    if (ed) *ed = NULL;
    if (n) *n = 0;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long f) {
    Graph *made = malloc(sizeof *made);
    *made = *(Graph *)g;
    *x = (cudaGraphExec_t)made;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) {
    ENTER;
    ALIVE;
    enqueue(s, ((Graph *)x)->work / 2 + 1000);
    LEAVE(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) {
    free(x);
    return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *v, size_t *n) {
    *n = g ? ((Graph *)g)->nodes : 0;
    return cudaSuccess;
}

/* libraries: they take their handles and do nothing */
#define HANDLE(name)                                                                                              \
    int name(void **h) {                                                                                          \
        *h = calloc(1, 4096);                                                                                     \
        return 0;                                                                                                 \
    }
HANDLE(cublasCreate_v2)
HANDLE(cublasLtMatmulDescCreate)
HANDLE(cublasLtMatrixLayoutCreate)
HANDLE(cublasLtMatmulPreferenceCreate)
int cublasGetMathMode(void *h, int *m) {
    *m = 0;
    return 0;
}
int cublasGetPointerMode_v2(void *h, int *m) {
    *m = 0;
    return 0;
}
int cublasLtMatmulAlgoGetHeuristic(
    void *h, void *d, void *a, void *b, void *c, void *e, void *p, int asked, char *results, int *found) {
    memset(results, 0, 96);
    *found = 1;
    return 0;
}
static cudaError_t library(const char *name, cudaStream_t s) {
    return launch(name, (dim3){132, 1, 1}, (dim3){256, 1, 1}, NULL, s);
}

static int plans;
int cufftCreate(int *p) {
    *p = ++plans;
    return 0;
}
int cufftXtMakePlanMany(int plan, int rank, long long *n, long long *ie, long long is, long long id, int it,
    long long *oe, long long os, long long od, int ot, long long batch, size_t *work, int et) {
    long long elements = batch, hard = 0;
    for (int i = 0; i < rank; i++) {
        long long rest = n[i];
        for (int p = 2; p <= 7; p++)
            while (rest % p == 0) rest /= p;
        hard |= rest > 1;
        elements *= n[i];
    }
    *work = hard ? elements * 8 : 0;
    return 0;
}
int cufftXtExec(int plan, void *in, void *out, int direction) { return library("cufftXtExec", 0) ? 6 : 0; }

/* cuDNN's graph API: one engine for everything, without a workspace */
HANDLE(cudnnCreate)
int cudnnBackendCreateDescriptor(int kind, void **d) {
    *d = calloc(1, 256);
    return 0;
}
int cudnnBackendDestroyDescriptor(void *d) {
    free(d);
    return 0;
}
int cudnnBackendGetAttribute(void *d, int attribute, int type, int64_t asked, int64_t *count, void *values) {
    int64_t n = 0;
    /* CUDNN_ATTR_ENGINEHEUR_RESULTS 202, CUDNN_ATTR_ENGINECFG_ENGINE 300 */
    if (type == 15)
        n = attribute == 202 || attribute == 300;
    else if (type == 3) {
        n = 1;
        if (values && asked) *(int64_t *)values = 0;
    }
    if (count) *count = n;
    return 0;
}
int cudnnBackendExecute(void *h, void *plan, void *pack) { return library("cudnnBackendExecute", 0) ? 5000 : 0; }
HANDLE(cudnnCreateTensorDescriptor)
HANDLE(cudnnCreateFilterDescriptor)
HANDLE(cudnnCreateConvolutionDescriptor)
HANDLE(cudnnCreateActivationDescriptor)
HANDLE(cudnnCreateDropoutDescriptor)
HANDLE(cudnnCreatePoolingDescriptor)
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    void *h, int m, int o, void *x, void *y, void *dy, void *dz, void *dx, void *b, void *a, size_t *n) {
    *n = 0;
    return 0;
}
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    void *h, int m, int o, void *x, void *z, void *y, void *b, void *a, size_t *n) {
    *n = 0;
    return 0;
}
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int m, int o, void *a, void *x, size_t *n) {
    *n = 0;
    return 0;
}
static int cudnn_run(void) { return library("cudnn", 0) ? 5000 : 0; }
int cudnnBatchNormalizationForwardInference(void) { return cudnn_run(); }
int cudnnBatchNormalizationForwardTrainingEx(void) { return cudnn_run(); }
int cudnnBatchNormalizationBackwardEx(void) { return cudnn_run(); }
#define PRODUCT(name)                                                                                             \
    int name(void) { return library("gemm", 0) ? 14 : 0; }
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasCgemm_v2)
PRODUCT(cublasZgemm_v2)
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasCgemmStridedBatched)
PRODUCT(cublasZgemmStridedBatched)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasLtMatmul)

/* the driver, where torch asks it */
int cardNothing(void) { return 0; }
int cuGetExportTable(const void **t, const void *id) {
    *t = NULL;
    return 500;
}
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *active) {
    *f = 0;
    *active = 1;
    return 0;
}
int cuCtxGetCurrent(void **c) {
    *c = (void *)0x1000;
    return 0;
}
int cuDeviceGet(int *d, int n) {
    *d = 0;
    return 0;
}
