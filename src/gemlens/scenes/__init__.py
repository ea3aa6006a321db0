"""A drawn world: emoji and words on photographs, of which everything is known exactly.

kinds.py words.py artwork.py     what there is
scene.py                         a seed -> a picture, and what is where
questions.py                     a scene -> prompts and their one right answer
source.py                        numbers -> examples, for gemlens.training and gemlens.evals
"""
