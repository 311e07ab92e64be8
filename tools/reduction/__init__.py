"""What tools/bench_reduction measures, a module for each kind of evidence; no part of the product."""
