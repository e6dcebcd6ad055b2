"""Is a checkpoint safe to open? Everything in it is read as data; nothing is unpickled, rendered, imported or run.

`places` lists the files of a folder, a GGUF file or a model on the hub. `contents` tells by a file's first bytes what
it is and hands it to the module that knows such files: `pickles`, `archives`, `templates`, `tensor_headers`,
`gguf_headers` or `code`. `checkpoint` and `licences` compare the files with each other. What can be found, how bad it
is and what to do about it is one table, `rules`; `report` is the result, `loading` the part that `lk.load` always runs.
"""
