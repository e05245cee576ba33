// CUDA without a device, for the real CuPy: memory is the host's, kernels are loaded and not run.
// libraries.c has what the libraries fill in.
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
typedef int err; typedef size_t sz;
#define E __attribute__((visibility("default")))
static int current = 0;

// ---- runtime
E err nothing(void) { return 0; }
E err cudaGetDeviceCount(int* n) { *n = 2; return 0; }
E err cudaGetDevice(int* n) { *n = current; return 0; }
E err cudaSetDevice(int n) { if (n < 0 || n > 1) return 101; current = n; return 0; }
E err cudaDriverGetVersion(int* n) { *n = 12090; return 0; }
E err cudaRuntimeGetVersion(int* n) { *n = 12090; return 0; }
E err cudaDeviceGetAttribute(int* v, int a, int d) {
  switch (a) { case 75: *v = 9; break; case 76: *v = 0; break; case 10: *v = 32; break;
    case 1: case 2: case 3: *v = 1024; break; case 4: *v = 64; break; case 5: *v = 2147483647; break; case 6: case 7: *v = 65535; break;
    case 8: *v = 49152; break; case 16: *v = 132; break; case 39: *v = 2048; break; case 115: *v = 1; break; default: *v = 1; }
  return 0; }
E err cudaDeviceCanAccessPeer(int* v, int a, int b) { *v = 1; return 0; }
static err props(char* p, sz n) { memset(p, 0, n); strcpy(p, "Fake"); *(int*)(p + 308) = 32; *(sz*)(p + 288) = (sz)80 << 30; return 0; }
E err cudaGetDeviceProperties(char* p, int d) { return props(p, 512); }
E err cudaGetDeviceProperties_v2(char* p, int d) { return props(p, 512); }
E err cudaDeviceGetPCIBusId(char* p, int n, int d) { strncpy(p, "0000:00:00.0", n); return 0; }
static err take(void** p, sz n) { *p = aligned_alloc(512, (n + 511) / 512 * 512 + 512); if (*p) memset(*p, 0, n); return *p ? 0 : 2; }
E err cudaMalloc(void** p, sz n) { return take(p, n); }
E err cudaMallocManaged(void** p, sz n, unsigned f) { return take(p, n); }
E err cudaMallocAsync(void** p, sz n, void* s) { return take(p, n); }
E err cudaHostAlloc(void** p, sz n, unsigned f) { return take(p, n); }
E err cudaMallocHost(void** p, sz n) { return take(p, n); }
E err cudaFree(void* p) { free(p); return 0; }
E err cudaFreeHost(void* p) { free(p); return 0; }
E err cudaFreeAsync(void* p, void* s) { free(p); return 0; }
E err cudaMemGetInfo(sz* a, sz* b) { *a = (sz)70 << 30; *b = (sz)80 << 30; return 0; }
E err cudaMemcpy(void* d, const void* s, sz n, int k) { memmove(d, s, n); return 0; }
E err cudaMemcpyAsync(void* d, const void* s, sz n, int k, void* st) { memmove(d, s, n); return 0; }
E err cudaMemcpyPeer(void* d, int a, const void* s, int b, sz n) { memmove(d, s, n); return 0; }
E err cudaMemcpyPeerAsync(void* d, int a, const void* s, int b, sz n, void* st) { memmove(d, s, n); return 0; }
E err cudaMemset(void* d, int v, sz n) { memset(d, v, n); return 0; }
E err cudaMemsetAsync(void* d, int v, sz n, void* s) { memset(d, v, n); return 0; }
E err cudaPointerGetAttributes(char* p, const void* q) { memset(p, 0, 24); *(int*)p = 2; *(int*)(p + 4) = current; *(const void**)(p + 8) = q; return 0; }
static void* handle(void) { static long n = 4096; n += 16; return (void*)n; }
E err cudaStreamCreate(void** s) { *s = handle(); return 0; }
E err cudaStreamCreateWithFlags(void** s, unsigned f) { *s = handle(); return 0; }
E err cudaStreamCreateWithPriority(void** s, unsigned f, int p) { *s = handle(); return 0; }
E err cudaStreamIsCapturing(void* s, int* v) { *v = 0; return 0; }
E err cudaEventCreate(void** s) { *s = handle(); return 0; }
E err cudaEventCreateWithFlags(void** s, unsigned f) { *s = handle(); return 0; }
E err cudaEventElapsedTime(float* t, void* a, void* b) { *t = 1; return 0; }
E const char* cudaGetErrorName(err e) { return e == 101 ? "cudaErrorInvalidDevice" : "cudaErrorFake"; }
E const char* cudaGetErrorString(err e) { return "fake error"; }
E err cudaDeviceGetLimit(sz* v, int l) { *v = 1 << 20; return 0; }
E err cudaDeviceGetDefaultMemPool(void** p, int d) { *p = handle(); return 0; }
E err cudaDeviceGetMemPool(void** p, int d) { *p = handle(); return 0; }
// ---- driver
E err cuInit(unsigned f) { return 0; }
E err cuDriverGetVersion(int* n) { *n = 12090; return 0; }
E err cuGetErrorName(err e, const char** s) { *s = "CUDA_ERROR_FAKE"; return 0; }
E err cuGetErrorString(err e, const char** s) { *s = "fake"; return 0; }
E err cuCtxGetCurrent(void** c) { *c = (void*)64; return 0; }
E err cuCtxGetDevice(int* d) { *d = current; return 0; }
E err cuModuleLoadData(void** m, const void* i) { *m = handle(); return 0; }
E err cuModuleLoadDataEx(void** m, const void* i, unsigned n, void* o, void* v) { *m = handle(); return 0; }
E err cuModuleLoad(void** m, const char* f) { *m = handle(); return 0; }
E err cuModuleUnload(void* m) { return 0; }
E err cuModuleGetFunction(void** f, void* m, const char* n) { *f = handle(); return 0; }
E err cuModuleGetGlobal_v2(void** p, sz* n, void* m, const char* s) { *n = 65536; return take(p, 65536); }
E err cuModuleGetGlobal(void** p, sz* n, void* m, const char* s) { *n = 65536; return take(p, 65536); }
E err cuFuncGetAttribute(int* v, int a, void* f) { *v = 256; return 0; }
E err cuFuncSetAttribute(void* f, int a, int v) { return 0; }
E err cuLaunchKernel(void* f) { return 0; }
E err cuLaunchCooperativeKernel(void* f) { return 0; }
E err cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void* f, int b, sz s) { *n = 4; return 0; }
E err cuOccupancyMaxPotentialBlockSize(int* g, int* b, void* f, void* c, sz s, int l) { *g = 128; *b = 256; return 0; }
E err cuStreamGetCtx(void* s, void** c) { *c = (void*)64; return 0; }
E err cuLinkCreate_v2(unsigned n, void* o, void* v, void** s) { *s = handle(); return 0; }
E err cuLinkAddData_v2(void) { return 0; }
E err cuLinkAddFile_v2(void) { return 0; }
E err cuLinkComplete(void* s, void** c, sz* n) { *c = ""; *n = 0; return 0; }
E err cuLinkDestroy(void* s) { return 0; }
E err cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
// ---- patching of the static runtime
#include <sys/mman.h>
#include <unistd.h>
#include <stdint.h>
E int redirect(char* at, void* to) {
  long page = sysconf(_SC_PAGESIZE);
  char* start = (char*)((uintptr_t)at / page * page);
  if (mprotect(start, 2 * page, PROT_READ | PROT_WRITE | PROT_EXEC)) return 1;
  at[0] = 0x49; at[1] = (char)0xbb; memcpy(at + 2, &to, 8); at[10] = 0x41; at[11] = (char)0xff; at[12] = (char)0xe3; // movabs r11; jmp r11
  mprotect(start, 2 * page, PROT_READ | PROT_EXEC);
  return 0; }
