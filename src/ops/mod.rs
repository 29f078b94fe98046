//! The ops, one room each: contract, CPU implementation, tests.
