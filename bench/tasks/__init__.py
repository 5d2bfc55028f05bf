"""Real sequence tasks on data that needs no download: RNN, GRU and LSTM at equal parameter counts."""
