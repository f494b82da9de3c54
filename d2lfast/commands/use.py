"""`d2lfast translate`, `d2lfast generate` and `d2lfast show`: what saved networks are used for."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from d2lfast._atomic import replacing
from d2lfast.commands.console import fail, say
from d2lfast.inference.language import generate
from d2lfast.inference.saved import Saved, load_saved
from d2lfast.inference.translation import Translator


def translate_command(
    sentence: Annotated[str, typer.Argument(help='English, for example "go ."')],
    model: Annotated[Path, typer.Option(help="Written by d2lfast train seq2seq.")] = Path("seq2seq.pt"),
    beam: Annotated[int, typer.Option(min=1, help="Beam size; 1 takes the best word each time.")] = 1,
) -> None:
    """Translate an English sentence to French."""
    saved = _load(model, "translation", "d2lfast train seq2seq")
    facts = saved.facts
    translator = Translator(saved.net, facts["src_vocab"], facts["tgt_vocab"], facts["num_steps"])
    try:
        unknown = translator.unknown(sentence)
        result = translator.translate(sentence, beam)
    except ValueError as error:
        fail(str(error))
    if unknown:
        typer.echo(f"The model has never seen: {', '.join(unknown)}.", err=True)
    say(result)


def generate_command(
    prefix: Annotated[str, typer.Option(help="The text to continue.")] = "it has",
    model: Annotated[Path, typer.Option(help="Written by d2lfast train rnn-lm.")] = Path("rnn-lm-rnn.pt"),
    length: Annotated[int, typer.Option(min=1, help="Characters to add.")] = 50,
) -> None:
    """Continue a text with a language model."""
    saved = _load(model, "time-machine", "d2lfast train rnn-lm")
    try:
        say(generate(saved.net, saved.facts["vocab"], prefix, length))
    except ValueError as error:
        fail(str(error))


def show_command(
    network: Annotated[str, typer.Argument(help="The network.")],
    weights: Annotated[Path | None, typer.Option(help="Default: NETWORK.pt in --out.")] = None,
    image: Annotated[int, typer.Option(min=0, help="Number of the test image.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder of the data. Default: D2LFAST_DATA.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("."),
) -> None:
    """Draw the first layer's filters, its feature maps of an image, and predictions of test images."""
    if importlib.util.find_spec("matplotlib") is None:
        fail("Drawing needs matplotlib: pip install 'd2lfast[plot]'")
    weights = weights or out / f"{network}.pt"
    saved = _load(weights, "fashion-mnist", f"d2lfast train {network}")
    if saved.name != network:
        fail(f"{weights} holds {saved.name}, not {network}")
    from d2lfast.data import ImageData, default_images
    from d2lfast.inference import pictures

    size = saved.facts["resize"]
    try:
        images = ImageData(default_images(data), 16, (size, size))
        if image >= len(images.val):
            fail(
                f"There are {len(images.val)} test images; the last one has the number {len(images.val) - 1}"
            )
        drawn = {"predictions": None, "filters": None, "features": None}
        X, y = next(iter(images.get_dataloader(train=False)))
        drawn["predictions"] = pictures.predictions(saved.net, X, y, images.classes)
        drawn["filters"] = pictures.filters(saved.net)
        drawn["features"] = pictures.feature_maps(saved.net, images.val[image][0])
    except (OSError, ValueError, ModuleNotFoundError) as error:
        if not isinstance(error, ValueError) or "no convolution" not in str(error):
            fail(str(error))
        say(f"Only predictions: {error}.")
    for kind, figure in drawn.items():
        if figure is not None:
            path = out / f"{network}-{kind}.png"
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=120)
            say(f"{kind.capitalize()}: {path}")


def _load(path: Path, data: str, command: str) -> Saved:
    try:
        return load_saved(path, data)
    except FileNotFoundError:
        fail(f"There is no model {path}; `{command}` writes one")
    except ValueError as error:
        fail(str(error))
