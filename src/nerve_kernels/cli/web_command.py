"""The command ``nerve-web``: starts the page, on this machine only unless told otherwise."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nerve_kernels.segmentation.extras import MissingExtraError, require_extra
from nerve_kernels.segmentation.presets import DEFAULT_PRESET, PRESETS, find_preset

if TYPE_CHECKING:
    from nerve_kernels.web.page import Page

EXAMPLES = """examples:
  nerve-web                                        the embedded models, at http://127.0.0.1:7860
  nerve-web --preset sd15-clip-b16 --device cuda   models of the hub, fetched at first use
  nerve-web --diffusion my/sd --clip my/clip       your own checkpoints
  nerve-web --host 0.0.0.0                         anyone who reaches this machine may use it: there is no password
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``nerve-web`` until it is interrupted.

    0: stopped by Ctrl+C. 1: an extra is missing, or the port cannot be used. 2: wrong options.

    Args:
        arguments: None: those of the process.

    Raises:
        SystemExit: with the code above, except after Ctrl+C.
    """
    options = _parser().parse_args(arguments)
    try:
        require_extra("gradio", "PIL", "diffusers", "transformers")
        find_preset(options.preset)
        from nerve_kernels.segmentation.loading import choose_device, choose_dtype

        choose_dtype(options.dtype, choose_device(options.device))
    except MissingExtraError:
        _leave('the page needs more libraries. Install them with: pip install "nerve_kernels[web]"', 1)
    except (ValueError, OSError) as error:
        _leave(str(error), 2)
    from nerve_kernels.web.guard import is_loopback

    if not is_loopback(options.host):
        print(
            f"nerve-web: listening on {options.host}: anyone who reaches this machine may use it, without a password",
            file=sys.stderr,
        )
    page = make_page(options)
    try:
        _, address, _ = launch(
            page, host=options.host, port=options.port, names=options.allow_host, open_browser=options.open
        )
    except OSError as error:
        _leave(str(error).splitlines()[0], 1)
    print(f"nerve-web: {address} (Ctrl+C stops it)", flush=True)
    page.blocks.block_thread()


def make_page(options: argparse.Namespace) -> Page:
    """The page, with its models loading in the background."""
    # Before gradio is imported: it then asks nobody for its latest version and reports nothing.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from nerve_kernels.cli.options import load as load_pipeline
    from nerve_kernels.segmentation.config import NerveConfig
    from nerve_kernels.segmentation.pipeline import NervePipeline
    from nerve_kernels.web.page import Page
    from nerve_kernels.web.scenes import known_words
    from nerve_kernels.web.workbench import Workbench

    preset = PRESETS[options.preset]
    own = bool(options.diffusion and options.clip)
    config = NerveConfig() if own else preset.config

    def load() -> NervePipeline:
        return load_pipeline(
            options.preset, options.diffusion, options.clip, options.autoencoder, options.device, options.dtype, config
        )

    workbench = Workbench(load)
    workbench.start_loading()
    embedded = options.preset == "embedded" and not (options.diffusion or options.clip)
    return Page(workbench, config, known_words() if embedded else "")


def launch(page: Page, *, host: str, port: int | None, names: Collection[str] = (), open_browser: bool = False) -> Any:
    """Serve the page in a thread of its own; everything that Gradio would fetch from or offer to the outside is off.

    Args:
        page: what is served.
        host: the address to listen on.
        port: None: the first free one from 7860.
        names: further names of this machine that a request may ask for.
        open_browser: show it in a browser.

    Returns:
        What Gradio's ``launch`` does: the application and its addresses.
    """
    import gradio
    from starlette.responses import PlainTextResponse

    from nerve_kernels.web import snippets
    from nerve_kernels.web.guard import Guard

    @asynccontextmanager
    async def behind_the_guard(app: Any) -> AsyncIterator[None]:
        # Around the whole of it: Gradio answers preflights before any middleware that is handed to it.
        app.middleware_stack = Guard(app.middleware_stack, (host, *names))
        yield

    async def unknown(request: Any, error: Exception) -> Any:
        # Gradio looks up what a request names: an event, a visitor.
        return PlainTextResponse(f"The page has no {error}.", 400)

    system_fonts = ["system-ui", "Segoe UI", "Roboto", "sans-serif"]
    return page.blocks.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=0,
        state_session_capacity=100,
        app_kwargs={"lifespan": behind_the_guard, "exception_handlers": {KeyError: unknown}},
        css=snippets.STYLE,
        theme=gradio.themes.Default(primary_hue="indigo", font=system_fonts, font_mono=["ui-monospace", "monospace"]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nerve-web",
        description="A page in the browser: an image, words, and the mask they make.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=_port, help="port to listen on (the first free one from 7860)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        type=_host_name,
        metavar="NAME",
        help="a further name of this machine, such as a proxy's, that requests may ask for; may be repeated",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--preset", default=DEFAULT_PRESET, help=f"one of {', '.join(PRESETS)} (%(default)s)")
    parser.add_argument("--diffusion", help="Stable Diffusion, FLUX, PixArt, DINO or ViT: a folder or a hub id")
    parser.add_argument("--clip", help="CLIP, OpenCLIP or SigLIP: a folder or a hub id")
    parser.add_argument("--autoencoder", help="in place of the checkpoint's VAE, such as madebyollin/taesd")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16; by default what the device computes fastest")
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 65535, got {text!r}")
    return int(text)


def _host_name(text: str) -> str:
    try:
        if urlsplit(f"//[{text}]" if ":" in text else f"//{text}").hostname == text.lower():
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a host's name or address, without scheme, port or path, got {text!r}")


def _leave(message: str, code: int) -> None:
    print(f"nerve-web: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
