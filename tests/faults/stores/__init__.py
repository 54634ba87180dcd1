"""Every command on imitated S3 stores: it works, says what it does instead, or refuses in one line.

`inputs` makes what the commands read, `commands` runs them as users do and asks the server without quirks for their
results, `stores` names the stores and what each command is expected to do on them, and `cells` judges one command on
one store. `python -m tests.perf.storage.stores` prints the whole matrix; the tests run a part of it.
"""
