"""What tools/bench_passes measures: single layers and whole models, dense beside lowered."""
