"""`gemlens caption`: pictures -> what is on them, in a sentence."""

from gemlens.assets import MODEL_NAME
from gemlens.cli import options
from gemlens.cli.ask import Wanted, answer_each
from gemlens.cli.settings import Loading
from gemlens.tasks import prompts


def caption(
    pictures: options.Pictures,
    model: options.ModelOption = MODEL_NAME,
    language: options.Language = "en",
    max_new_tokens: options.MaxNewTokens = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.JsonLines = False,
) -> None:
    """Say what is on pictures.

    PaliGemma reads "caption en", a model with a chat template a message. The caption is the most probable one. Without
    --model the embedded model says it, which knows drawn scenes only.

    \b
    gemlens caption scene.png
    gemlens caption *.jpg --model google/paligemma2-3b-mix-448 --language de --json
    """
    message = "Write a caption for this picture: one short sentence"
    message += "." if language == "en" else f", in the language with the code '{language}'."
    wanted = Wanted(prompts.caption(language), message)
    answer_each(pictures, wanted, model, Loading(dtype, device), max_new_tokens, as_json)
