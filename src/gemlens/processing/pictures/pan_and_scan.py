"""Where pan and scan cuts a picture: the one geometry that slow and fast image processors share.

Gemma 3's picture encoder sees a square. A long picture would be squeezed, so it is shown once as a whole and again in
2 to `max_num_crops` pieces along its longer side:

    1920 x 1080:  +---------+---------+      ratio 1.78, rounded: 2 pieces of 960 x 1080
                  |    0    |    1    |
                  +---------+---------+
"""

import math

from gemlens.errors import InputError

Box = tuple[int, int, int, int]


def crop_boxes(
    width: int, height: int, min_crop_size: int, max_num_crops: int, min_ratio_to_activate: float
) -> list[Box]:
    """The crops of a picture as (left, top, right, bottom), from left to right or from top to bottom; none: [].

    There are as many as the longer side has lengths of the shorter one, rounded half up, within [2, max_num_crops] and
    none narrower than `min_crop_size`, apart from the last, which gets what is left. Where crops would be
    fewer pixels wide than there are crops, the reference cuts empty ones, black pictures; here there are fewer.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        min_crop_size: a crop with a shorter side than this is not worth it.
        max_num_crops: the most there may be.
        min_ratio_to_activate: pictures with a smaller ratio of longer to shorter side are not cut.

    Raises:
        InputError: a number is not positive.
    """
    given = {
        "width": width, "height": height, "min_crop_size": min_crop_size, "max_num_crops": max_num_crops,
        "min_ratio_to_activate": min_ratio_to_activate,
    }  # fmt: skip
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise InputError(f"Pan and scan got {name}={value!r}, but it must be a positive number.")
    longer, shorter = max(width, height), min(width, height)
    if longer / shorter < min_ratio_to_activate:
        return []
    count = min(math.floor(longer / min_crop_size), math.floor(longer / shorter + 0.5))
    count = min(int(max_num_crops), max(2, count))
    step = math.ceil(longer / count)
    if min(step, shorter) < min_crop_size:
        return []
    spans = [(start, min(start + step, longer)) for start in range(0, longer, step)]
    if width >= height:
        return [(start, 0, end, height) for start, end in spans]
    return [(0, start, width, end) for start, end in spans]
