"""The contenders: this package and its peers, each run by `worker` in a process, and if need be an interpreter, of its
own.

A module here has one function, `load(folder, cores)`, which returns a function from texts and a batch size to vectors.
It imports what it needs and nothing of the other modules, so that an interpreter needs only its own contender.
"""
