"""What VISTA is compared with, in the same slot: same embeddings, same MLP, same hyper-parameters."""
