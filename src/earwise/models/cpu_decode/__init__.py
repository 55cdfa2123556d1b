"""Fast decoding of a few rows on a CPU: prepacked GEMM weights and fused decoder layers."""
