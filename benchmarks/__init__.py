"""Our own benchmarks, on the library `infobatch_mm.compare`."""
