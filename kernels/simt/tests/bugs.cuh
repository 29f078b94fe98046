// The planted bugs: every kernel of this folder takes one as a template parameter; kNone is the correct kernel.
//
// src/device/emulated/bug_tests.rs says for each how it has to be found.
#pragma once

enum Bug {
    kNone,

    // gemm
    kNoLoopBarrier,      // nothing between the wait and the reads
    kWaitOffByOne,       // one more group may be under way
    kNoCommit,           // the copies of the loop belong to no group
    kPrefetchIntoRead,   // the copy goes to the stage that is read
    kPrefetchBeforeBarrier,  // the copy starts while others still read its stage
    kNoReuseBarrier,     // shared memory gets its second use too early
    kNoResultBarrier,    // results are read before all are there
    kWrongSwizzle,       // on the reading side only
    kSwappedFragments,   // the two halves of b
    kTransposedFragment, // ldmatrix_x4_trans where ldmatrix_x4 belongs
    kNoSwizzle,          // right, but with bank conflicts
    kDirectStores,       // right, but every store fills half a sector
    kNoRowBound,         // a is read below its last row
    kNoResultBound,      // c is written below its last row
    kStageBeyondEnd,     // a stage that does not exist
    kDivergentLdmatrix,  // half of the lanes only
    kDivergentMma,       // a tile of another shape in half of the lanes
    kMisalignedCopy,     // 8 bytes off

    // add
    kOnePast,            // i <= count
    kNoBound,            // every thread of the last block
    kOneBefore,          // writes z[-1] too
    kFarWrite,           // 2^44 elements away
    kSameElement,        // two threads of a block write the same value to one place
    kSameElementAcrossBlocks,
    kInPlace,            // x is changed while other blocks read it
    kForEver,            // one thread never ends
    kWaitsForABlock,     // spins until a later block has written
    kDivisionByZero,
    kDeepStack,          // more local variables than a thread has memory for
    kMisalignedWord,     // a float at an odd address
    kOverflow,           // the offset in 32 bits

    // norm
    kNoBarrier,          // partial sums are read too early
    kUnwrittenSlot,      // one partial sum is never written
    kReadsOutput,        // a value that was never written, and is not used
    kDivergentBarrier,   // in a branch that half of the block takes
    kBarrierPerTrip,     // in a loop that threads leave at different times
    kTwoBarriers,        // both halves of the block meet, at different lines
    kEarlyReturn,        // threads without work leave before the barrier
    kDivergentShuffle,   // in a branch that some lanes take
    kMisalignedVector,   // 2 bytes off
    kLoopOnePast,        // i <= columns
    kSharedOnePast,      // partial[4]
    kSharedFar,          // partial[4096]

    // transpose
    kNoSyncwarp,
    kNoSyncwarpInLoop,   // a tile is filled again while other lanes still read it
    kUnpadded,           // right, but columns fall on one bank
    kNoTile,             // right, but every store touches a sector of its own

    // sum
    kNoReleaseFence,     // the ticket may overtake the partial sum
    kNoAcquireFence,     // the partial sums may be read before the ticket
    kNoTicketBarrier,    // the ticket is read before it is there
    kPlainTicket,        // read, add, write
    kPlainTotal,         // total += x by every block
    kPlainTotalInBlock,  // total += x by every thread
    kPlainSharedTotal,   // the same in shared memory
};
