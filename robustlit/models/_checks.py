"""Checks that every network makes before it is built."""


def check_sizes(num_classes: int, in_chans: int, image_size: int, smallest_image: int = 1) -> None:
    """Refuse numbers that no classifier can be built from.

    Args:
        num_classes: Number of logits, at least 2.
        in_chans: Channels of an image, at least 1.
        image_size: Side of the square image in pixels, at least `smallest_image`.
        smallest_image: Side in pixels below which the network has nothing left to classify.

    Raises:
        ValueError: A number is not an integer, or too small.
    """
    check_integer("num_classes", num_classes, 2, "a classifier needs two classes or more")
    check_integer("in_chans", in_chans, 1, "1 for grey images, 3 for colour")
    check_integer(
        "image_size", image_size, smallest_image, "enlarge the images, or choose a network with less downsampling"
    )


def check_integer(name: str, value: int, least: int, advice: str) -> None:
    """Refuse a value that is not an integer of at least `least`.

    Args:
        name: What the user calls the value.
        value: The value. None is what an unfilled `null` of a recipe arrives as.
        least: The smallest value allowed.
        advice: The way out, the last words of the error.

    Raises:
        ValueError: The value is None, not an integer, or below `least`.
    """
    if value is None:
        raise ValueError(
            f"{name} must be an integer of at least {least}, got None; the null of a recipe is filled in from the "
            f"data by `train.py`: elsewhere give the number"
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}; {advice}")
