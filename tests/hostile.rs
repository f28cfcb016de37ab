//! Junk, oversize and malformed input on every port.
