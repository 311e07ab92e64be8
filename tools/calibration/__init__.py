"""What tools/calibrate is made of: measurement tables, architectures without weights, robust fits."""
