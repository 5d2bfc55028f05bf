"""Published cells, a page each, made with `holdfast.define_cell`: `holdfast.Recurrent("janet", 64, 256)`.

| cell | from | gates | states | products a step |
| --- | --- | --- | --- | --- |
| `janet` | van der Westhuizen and Lasenby 2018 | 2 | 1 | 1 |
| `lem` | Rusch et al. 2022 | 4 | 2 | 2 |
| `ligru` | Ravanelli et al. 2018 | 2 | 1 | 1 |
| `mgu` | Zhou et al. 2016 | 2 | 1 | 2 |
| `nbrc` | Vecoven et al. 2021 | 3 | 1 | 1 |
| `sublstm` | Costa et al. 2017 | 4 | 2 | 1 |
| `ugrnn` | Collins et al. 2017 | 2 | 1 | 1 |

A page has the formula, its source, the math of a step on tiles and in plain torch. It is read when its name is first
asked for; a cell of your own that has the name already is the one that you get.

Not here: IndRNN, SRU, QRNN and whatever else has no W_hh. Their units do not see each other, so there is nothing to
keep on chip, and a loop that multiplies W_hh all the same would be the slow way.
"""

CATALOGUE = ("janet", "lem", "ligru", "mgu", "nbrc", "sublstm", "ugrnn")
