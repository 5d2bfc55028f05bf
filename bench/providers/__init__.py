"""Who computes a case: holdfast in several ways, torch.nn, loops over steps, FlashRNN."""
