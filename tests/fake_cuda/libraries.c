// Functions of CUDA's libraries that fill in a result; all others do nothing and return 0. One function a line.
int cublasCreate_v2(void** h) { *h = (void*)32; return 0; }
int cublasGetVersion_v2(void* h, int* v) { *v = 120900; return 0; }
int cublasGetStream_v2(void* h, void** s) { *s = 0; return 0; }
int cublasGetPointerMode_v2(void* h, int* v) { *v = 0; return 0; }
int cublasGetMathMode(void* h, int* v) { *v = 0; return 0; }
int cusolverDnCreate(void** h) { *h = (void*)32; return 0; }
int cusparseCreate(void** h) { *h = (void*)32; return 0; }
int curandCreateGenerator(void** h, int t) { *h = (void*)32; return 0; }
int curandGetVersion(int* v) { *v = 100300; return 0; }
int cudnnGetVersion(void) { return 8907; }
int cudnnCreate(void** h) { *h = (void*)32; return 0; }
int cudnnCreateTensorDescriptor(void** h) { *h = (void*)32; return 0; }
int cudnnCreateFilterDescriptor(void** h) { *h = (void*)32; return 0; }
int cudnnCreateConvolutionDescriptor(void** h) { *h = (void*)32; return 0; }
int cudnnCreatePoolingDescriptor(void** h) { *h = (void*)32; return 0; }
int cudnnCreateActivationDescriptor(void** h) { *h = (void*)32; return 0; }
int cudnnCreateDropoutDescriptor(void** h) { *h = (void*)32; return 0; }
int cudnnCreateReduceTensorDescriptor(void** h) { *h = (void*)32; return 0; }
int cudnnDropoutGetStatesSize(void* h, sz* n) { *n = 1024; return 0; }
int cudnnDropoutGetReserveSpaceSize(void* d, sz* n) { *n = 1024; return 0; }
int cudnnGetReductionWorkspaceSize(void* h, void* d, void* a, void* b, sz* n) { *n = 1024; return 0; }
int cudnnGetReductionIndicesSize(void* h, void* d, void* a, void* b, sz* n) { *n = 1024; return 0; }
int cudnnGetConvolutionForwardWorkspaceSize(void* h, void* a, void* b, void* c, void* d, int g, sz* n) { *n = 1024; return 0; }
int cudnnGetConvolutionBackwardFilterWorkspaceSize(void* h, void* a, void* b, void* c, void* d, int g, sz* n) { *n = 1024; return 0; }
int cudnnGetConvolutionBackwardDataWorkspaceSize(void* h, void* a, void* b, void* c, void* d, int g, sz* n) { *n = 1024; return 0; }
int cudnnGetConvolutionForwardAlgorithm_v7(void* h, void* a, void* b, void* c, void* d, int want, int* got, char* p) { *got = 1; memset(p, 0, 48); *(int*)p = 1; return 0; }
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(void* h, void* a, void* b, void* c, void* d, int want, int* got, char* p) { *got = 1; memset(p, 0, 48); *(int*)p = 1; return 0; }
int cudnnGetConvolutionBackwardDataAlgorithm_v7(void* h, void* a, void* b, void* c, void* d, int want, int* got, char* p) { *got = 1; memset(p, 0, 48); *(int*)p = 1; return 0; }
int cudnnGetTensor4dDescriptor(void* d, int* type) { *type = 0; return 0; }
