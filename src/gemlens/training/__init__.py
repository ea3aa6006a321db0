"""Models learn: examples -> batches -> a loss on the answers -> changed weights -> files, from which a run goes on.

settings.py     everything that a run can be told: TOML, flags, Python
train.py        settings -> model, processor, data -> a Run -> files
loop.py         a step: gradients of micro-batches, added up; an update; now and then evaluate and save
order.py loading.py     which examples make which step; read ahead
batches.py      examples -> ids, pixels, token types, labels on what is to be said
objective.py    model and batch -> the sum of losses that batches of any size add up to
chunked_loss.py cross-entropy without the logits of all tokens
lora.py low_rank.py     adapters in the place of linear layers, and their product
adapters.py peft_config.py      adapters in PEFT's files
freezing.py     which weights learn
schedule.py     the learning rate of each step
checkpoints.py metrics.py plot.py       where a run stands, and how it went
mask_codec.py   how the codec of masks learns, which is no language model
"""
