"""The type checker behind the import hook of conftest.py: beartype, with ints where floats are asked for (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
