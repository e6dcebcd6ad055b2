"""One model for a class: who may ask, whose turn it is, and the door between them and the workers that hold the model.

`jobs` is what waits in the queue, `turns` the queue, `store` keeps it over a restart, `tokens` knows the students,
`workers` run calls, `desk` joins these; `app` is HTTP and WebSocket around it, `requests` what is read from anybody,
`classroom` the teacher's way in and `teacher` their page, `command` is `labkit serve`. What is asked and answered are
bytes here: `labkit.remote` knows what they mean, and calls only what it has registered.
"""
