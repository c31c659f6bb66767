//! c shim
