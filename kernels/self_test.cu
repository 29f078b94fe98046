// A kernel that uses every part of a launch once: pointers, integers and floats of the params, the three
// dimensions of the grid, shared memory above 48 KiB, a barrier and a shuffle. Its arithmetic is exact, so
// the host knows the expected result.
#include "common/simt.cuh"

// Parameters of self_test.
struct SelfTestParams {
    const uint32_t* x;  // [blocks, 128]
    uint32_t* y;        // [blocks, 128]
    uint32_t factor;
    float addend;     // a small integer
    int64_t offset;   // added to every element
    uint32_t stride;  // words between the elements of a block in shared memory; odd
    uint32_t fault;   // 0; 1 makes every thread write 16 GiB below `y`
};

// y[b, t] = z[b, 127 - t] ^ z[b, 127 - (t ^ 1)] with z = factor * x + addend + offset + b. Blocks are counted x first.
KERNEL(self_test, SelfTestParams, 128, 1) {
    DYNAMIC_SMEM(smem);
    uint32_t* z = reinterpret_cast<uint32_t*>(smem);
    const uint32_t thread = threadIdx.x;
    const uint32_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const uint32_t added = static_cast<uint32_t>(p.addend) + static_cast<uint32_t>(p.offset) + block;
    z[thread * p.stride] = p.factor * p.x[static_cast<int64_t>(block) * 128 + thread] + added;
    __syncthreads();
    const uint32_t own = z[(127 - thread) * p.stride];
    const uint32_t other = shfl_xor(own, 1);
    p.y[static_cast<int64_t>(block) * 128 + thread - (static_cast<int64_t>(p.fault) << 32)] = own ^ other;
}
