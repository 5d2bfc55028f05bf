"""Trained models that lie inside packages of other people: their weights through torch.nn, holdfast and the kernels."""
