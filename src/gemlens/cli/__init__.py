"""ask: the command line `gemlens`. It knows everything, lazily; nothing knows it.

main.py                    the app, and how every error ends
demo.py                    all tasks on one picture, with the embedded model
caption.py ask.py          pictures -> what is on them; a question about them -> answers
detect.py segment.py       pictures -> boxes; masks
run.py chat.py             one answer; a conversation at the terminal
inspect.py mask.py         what a checkpoint is; who sees whom in a prompt
convert.py quantize.py     GGUF -> safetensors; weights -> integers

options.py settings.py     the options that commands share, and the values that they become
checkpoint.py folders.py   MODEL -> files, model, processor; folders that are written
prompts.py                 text and pictures -> what the model reads
answer.py                  that -> generate -> text as it comes
dialogue.py session.py     how a conversation is put to a model; one conversation and its cache
transcripts.py             what /save writes
facts.py trace.py          what inspect tells; --trace
terminal.py                what reaches the terminal, and what must not
help_pages.py              docs/cli, generated from the app
"""
