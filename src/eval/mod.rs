//! Zero-shot scores, metrics with intervals, retrieval, localisation and sparsity.
