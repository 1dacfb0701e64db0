"""The small Stable Diffusion: the shapes of its parts, all of them diffusers' own classes."""

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

IMAGE_SIDE = 128
LATENT_SIDE = IMAGE_SIDE // 4
TEXT_WIDTH = 32
LONGEST_PROMPT = 16


def new_autoencoder() -> AutoencoderKL:
    """Factor 4, four latent channels; fully convolutional, so that it trains on crops."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=IMAGE_SIDE,
        mid_block_add_attention=False,
    )


def new_unet() -> UNet2DConditionModel:
    """Self-attention (`attn1`) at 32x32, 16x16 and, in the middle, 8x8 tokens."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 80, 96),
        layers_per_block=1,
        # diffusers reads this argument as the number of heads: 20 to 24 channels a head.
        attention_head_dim=(2, 4, 4),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder for the empty prompt only: a fixed random one serves."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=LONGEST_PROMPT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler() -> DDPMScheduler:
    """Stable Diffusion's own noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


#: Channels 0-2 carry colour, 3-6 constants of both signs, through the whole trunk.
_COLOURS, _ANCHORS = 3, (2.0, -2.0, 2.0, -2.0)


@torch.no_grad()
def start_from_averaging(model: AutoencoderKL) -> None:
    """Initialise an autoencoder so that it begins as 4x4 averaging and nearest upsampling.

    From the usual random start the group norms erase an image's absolute colours, and thousands
    of steps go by before the decoder gets them back. Here every residual branch begins at zero,
    the trunk hands the colours on, and constant "anchor" channels dominate the statistics of
    their group, so that the last norm only scales the colours.
    """
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
            if module.conv_shortcut is not None:
                _hand_on(module.conv_shortcut, [(0, 0, 1.0)])
        elif isinstance(module, Downsample2D):
            _hand_on(module.conv, [(y, x, 0.25) for y in (0, 1) for x in (0, 1)])
        elif isinstance(module, Upsample2D):
            _hand_on(module.conv, [(1, 1, 1.0)])
    for entry in (model.encoder.conv_in, model.decoder.conv_in):
        _hand_on(entry, [(1, 1, 1.0)], channels=_COLOURS)
        entry.bias[_COLOURS : _COLOURS + len(_ANCHORS)] = torch.tensor(_ANCHORS)
    for leave in (model.encoder.conv_out, model.decoder.conv_out):
        leave.weight.mul_(0.1)
        # silu(x) is near x / 2 for small x.
        _hand_on(leave, [(1, 1, 2.0)], channels=_COLOURS)
    for mixing in (model.quant_conv, model.post_quant_conv):
        torch.nn.init.dirac_(mixing.weight)
        mixing.bias.zero_()
    latent = model.config.latent_channels
    # A sharp posterior at first: noise of deviation 1 would drown everything.
    model.quant_conv.weight[latent:] *= 0.1
    model.quant_conv.bias[latent:] = -6.0


def _hand_on(
    conv: torch.nn.Conv2d,
    taps: list[tuple[int, int, float]],
    channels: int = _COLOURS + len(_ANCHORS),
) -> None:
    """Make the first output channels of a convolution copies of the same input channels."""
    rows = min(conv.out_channels, _COLOURS + len(_ANCHORS))
    conv.weight[:rows] = 0
    if conv.bias is not None:
        conv.bias[:rows] = 0
    for channel in range(min(channels, rows)):
        for y, x, weight in taps:
            conv.weight[channel, channel, y, x] = weight
