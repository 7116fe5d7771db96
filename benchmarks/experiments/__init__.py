"""One file per paper figure or table; `ewc-fig2a` lives in `ewc_fig2a.py`."""
