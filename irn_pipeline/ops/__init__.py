"""Pure array maths: arrays in, arrays out; no files, no configuration, no networks."""
