//! Settings: embedded variants, presets, files and flags become one immutable value. The only place with defaults.
