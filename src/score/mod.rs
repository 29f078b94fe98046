//! Scoring: log-probabilities of answers, forward only.
