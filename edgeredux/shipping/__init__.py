"""Model files for the way to a device: zeros coded, everything compressed, bit for bit the same when expanded."""
