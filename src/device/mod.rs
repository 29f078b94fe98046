//! Where numbers live and who computes: buffers, the pool they come from, and the ledger of what a step costs.
