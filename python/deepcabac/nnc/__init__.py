"""ISO/IEC 15938-17 (NNC) streams."""
