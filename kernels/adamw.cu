// One optimizer step over all trained tensors, in three launches for any number of tensors, with nothing read
// back.
//
// grad_norm_partial sums the squares of 4096 gradients a block, grad_norm_total adds these sums in order and
// computes norm, clipping factor, and whether the norm is finite; adamw applies the update: parameters and
// moments in f32, the bf16 copy that the other kernels read, and the gradients set to zero for the next step.
// If the norm is not finite, adamw only sets the gradients to zero. Sums of squares are f64, made of f32 sums
// of four, so that the slow f64 units of consumer GPUs keep up with memory. Products and sums of the update
// are rounded one by one, in the order of the CPU's code, so its bits are the same. Source: Loshchilov and
// Hutter, "Decoupled weight decay regularization", 2019; order of operations as in PyTorch.
#include "common/simt.cuh"

// One trained tensor; all its arrays have the same length.
struct AdamWTensor {
    float* param;       // what is trained
    bf16* shadow;       // its rounded copy
    float* grad;        // gradient, set to zero
    float* exp_avg;     // first moment
    float* exp_avg_sq;  // second moment
    int64_t decays;     // 1: weight decay applies to it; 0: it does not
};

// The part of a tensor that one block works on: at most 4096 elements.
struct AdamWBlock {
    int32_t tensor;  // index into the tensors
    int32_t count;   // elements of the part
    int64_t first;   // its first element
};

// The scalars of one step, in device memory, so that a captured step can be replayed with other values.
struct AdamWScalars {
    float max_norm;       // longest gradient; infinite without a limit
    float max_norm_rest;  // what max_norm lacks to the f64 that it was
    float step_size;      // learning rate / (1 - beta1^t)
    float root;           // sqrt(1 - beta2^t)
    float decay;          // 1 - learning rate * weight decay
    float beta1;          // decay of the first moment
    float rest1;          // 1 - beta1
    float beta2;          // decay of the second moment
    float rest2;          // 1 - beta2
    float epsilon;        // added to the root of the second moment
};

// Parameters of grad_norm_* and adamw.
struct AdamWParams {
    const AdamWTensor* tensors;   // the trained tensors
    const AdamWBlock* blocks;     // [num_blocks]
    const AdamWScalars* scalars;  // of this step
    double* partial;              // [num_blocks], sums of squares
    double* outcome;              // [3]: norm before clipping, factor of the gradients, 1 where the step was applied and 0 where not
    int32_t num_blocks;           // parts of all tensors
    int32_t reserved;             // 0
};

constexpr int kAdamWThreads = 256;

// Sum over the block in a fixed order, valid in thread 0.
DEVICE double block_sum_f64(double x, double* sums) {
    UNROLL for (int distance = 16; distance > 0; distance >>= 1) x += shfl_xor(x, distance);
    if (lane_id() == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    if (threadIdx.x == 0) {
        UNROLL for (int i = 0; i < kAdamWThreads / 32; i++) x += sums[i];
    }
    return x;
}

// Four numbers, or as many as there are and zeros.
DEVICE Vec16 load_some(const float* from, int count) {
    if (count >= 4) return load16(from);
    Vec16 x{{0, 0, 0, 0}};
    UNROLL for (int j = 0; j < 3; j++) {
        if (j < count) x.word[j] = float_bits(from[j]);
    }
    return x;
}

// The same to memory.
DEVICE void store_some(float* to, const Vec16& x, int count) {
    if (count >= 4) return store16(to, x);
    UNROLL for (int j = 0; j < 3; j++) {
        if (j < count) to[j] = bits_float(x.word[j]);
    }
}

KERNEL(grad_norm_partial, AdamWParams, 256, 4) {
    STATIC_SMEM(double, sums, 8);
    const AdamWBlock& block = p.blocks[blockIdx.x];
    const float* grad = p.tensors[block.tensor].grad + block.first;
    double sum = 0;
    UNROLL for (int i = 0; i < 4; i++) {
        const int at = (i * kAdamWThreads + static_cast<int>(threadIdx.x)) * 4;
        if (at >= block.count) continue;
        const Vec16 g = load_some(grad + at, block.count - at);
        float squares = 0;
        UNROLL for (int j = 0; j < 4; j++) squares = fmaf(bits_float(g.word[j]), bits_float(g.word[j]), squares);
        sum += squares;
    }
    sum = block_sum_f64(sum, sums);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

// One block. The same formula as clip_factor on the CPU, in f64.
KERNEL(grad_norm_total, AdamWParams, 256, 1) {
    STATIC_SMEM(double, sums, 8);
    double sum = 0;
    for (int i = threadIdx.x; i < p.num_blocks; i += kAdamWThreads) sum += p.partial[i];
    sum = block_sum_f64(sum, sums);
    if (threadIdx.x == 0) {
        const double norm = sqrt(sum);
        const double max_norm = static_cast<double>(p.scalars->max_norm) + static_cast<double>(p.scalars->max_norm_rest);
        const double factor = max_norm / (norm + 1e-6);
        p.outcome[0] = norm;
        p.outcome[1] = factor < 1.0 ? factor : 1.0;
        p.outcome[2] = norm < __builtin_huge_val() ? 1.0 : 0.0;
    }
}

KERNEL(adamw, AdamWParams, 256, 4) {
    const AdamWBlock& block = p.blocks[blockIdx.x];
    const AdamWTensor& tensor = p.tensors[block.tensor];
    const AdamWScalars& s = *p.scalars;
    // Loaded into registers: after a store the compiler would read them again.
    float *const params = tensor.param, *const grads = tensor.grad;
    float *const exp_avgs = tensor.exp_avg, *const exp_avg_sqs = tensor.exp_avg_sq;
    bf16* const shadows = tensor.shadow;
    const float step_size = s.step_size, root = s.root, epsilon = s.epsilon;
    const float decay = tensor.decays != 0 ? s.decay : 1.0f;
    const float beta1 = s.beta1, rest1 = s.rest1, beta2 = s.beta2, rest2 = s.rest2;
    const int64_t first = block.first;
    const int count = block.count;
    const float clip = static_cast<float>(p.outcome[1]);
    const bool is_finite = p.outcome[2] != 0.0;
    UNROLL_2 for (int i = 0; i < 4; i++) {
        const int at = (i * kAdamWThreads + static_cast<int>(threadIdx.x)) * 4;
        if (at >= count) continue;
        const int64_t place = first + at;
        if (is_finite) {
            const Vec16 grad = load_some(grads + place, count - at);
            Vec16 param = load_some(params + place, count - at);
            Vec16 exp_avg = load_some(exp_avgs + place, count - at);
            Vec16 exp_avg_sq = load_some(exp_avg_sqs + place, count - at);
            float rounded[4];
            UNROLL for (int j = 0; j < 4; j++) {
                const float g = bits_float(grad.word[j]) * clip;
                const float m = bits_float(exp_avg.word[j]) * beta1 + g * rest1;
                const float v = bits_float(exp_avg_sq.word[j]) * beta2 + g * g * rest2;
                rounded[j] = bits_float(param.word[j]) * decay - step_size * (m / (sqrtf(v) / root + epsilon));
                exp_avg.word[j] = float_bits(m);
                exp_avg_sq.word[j] = float_bits(v);
                param.word[j] = float_bits(rounded[j]);
            }
            store_some(params + place, param, count - at);
            store_some(exp_avgs + place, exp_avg, count - at);
            store_some(exp_avg_sqs + place, exp_avg_sq, count - at);
            if (count - at >= 4) {
                store8(reinterpret_cast<float*>(shadows + place), bits_float(pack_bf16(rounded[0], rounded[1])),
                       bits_float(pack_bf16(rounded[2], rounded[3])));
            } else {
                UNROLL for (int j = 0; j < 3; j++) {
                    if (j < count - at) shadows[place + j] = to_bf16(rounded[j]);
                }
            }
        }
        store_some(grads + place, Vec16{{0, 0, 0, 0}}, count - at);
    }
}
