"""Pictures and sounds of the demo archive, drawn and synthesised here: nothing is downloaded, no rights are touched.

Shape letters: H, W picture size, N samples, K partials.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

FloatArray = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

SYNTH_RATE = 16_000  # sounds are made at this rate and stretched to the rate of the file
INK: Colour = (20, 20, 28)
SKIN: Colour = (226, 184, 150)


# A painter draws what moves over the background: (canvas, width, height, seconds since the cut).
def _studio(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    x, y = w * 0.5 + 3 * sin(t * 2), h * 0.36 + 2 * sin(t * 5)
    draw.rectangle((w * 0.68, h * 0.1, w * 0.95, h * 0.45), fill=(30, 70, 150))
    draw.pieslice((w * 0.72, h * 0.14, w * 0.91, h * 0.41), int(t * 60), int(t * 60) + 280, fill=(90, 160, 220))
    draw.rounded_rectangle((w * 0.36, h * 0.52, w * 0.64, h), 12, fill=(60, 30, 40))
    draw.ellipse((x - w * 0.07, y - h * 0.16, x + w * 0.07, y + h * 0.16), fill=SKIN)
    mouth = h * (0.01 + 0.02 * abs(sin(t * 9)))
    draw.ellipse((x - w * 0.02, y + h * 0.07 - mouth, x + w * 0.02, y + h * 0.07 + mouth), fill=(130, 40, 40))
    draw.rectangle((0, h * 0.78, w, h), fill=(90, 90, 110))


def _forecast(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    land = [(0.1, 0.3), (0.35, 0.15), (0.6, 0.25), (0.7, 0.55), (0.5, 0.75), (0.2, 0.65)]
    draw.polygon([(x * w, y * h) for x, y in land], fill=(110, 160, 90))
    for i in range(4):
        x, y = (w * (0.1 + 0.22 * i) + t * 14) % (w * 1.1) - w * 0.05, h * (0.25 + 0.1 * (i % 3))
        draw.ellipse((x - 26, y - 12, x + 26, y + 12), fill=(225, 228, 235))
        for k in range(-2, 3):
            fall = (t * 60 + k * 11) % 30
            draw.line((x + k * 9, y + 14 + fall, x + k * 9 - 3, y + 22 + fall), fill=(40, 70, 190), width=2)
    draw.ellipse((w * 0.8, h * 0.08, w * 0.92, h * 0.28), fill=(250, 200, 40))


def _pitch(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    draw.line((w / 2, 0, w / 2, h), fill=(240, 240, 240), width=2)
    draw.ellipse((w * 0.4, h * 0.32, w * 0.6, h * 0.68), outline=(240, 240, 240), width=2)
    draw.rectangle((w * 0.88, h * 0.3, w - 2, h * 0.7), outline=(240, 240, 240), width=3)
    for i in range(10):
        x = w * (0.1 + 0.08 * i) + w * 0.07 * sin(t * 1.7 + i)
        y = h * (0.2 + 0.6 * ((i * 7) % 10) / 10) + h * 0.06 * cos(t * 2.3 + 2 * i)
        draw.rectangle((x - 4, y - 9, x + 4, y + 9), fill=(200, 30, 30) if i % 2 else (30, 40, 190))
        draw.ellipse((x - 3, y - 15, x + 3, y - 9), fill=SKIN)
    x, y = w * (0.2 + 0.7 * ((t * 0.35) % 1)), h * (0.5 + 0.2 * sin(t * 3))
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(255, 255, 255))


def _stove(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    draw.ellipse((w * 0.28, h * 0.4, w * 0.72, h * 0.85), fill=(45, 45, 50))
    draw.rectangle((w * 0.7, h * 0.58, w * 0.98, h * 0.66), fill=(60, 40, 30))
    for i in range(14):
        angle = i * 2.4 + t * (0.9 if i % 2 else -0.6)
        x, y = w * 0.5 + w * 0.014 * i * cos(angle), h * 0.62 + h * 0.012 * i * sin(angle)
        draw.ellipse((x - 6, y - 5, x + 6, y + 5), fill=(225, 170, 60) if i % 3 else (190, 60, 40))
    for i in range(5):
        rise = (t * 40 + i * 23) % (h * 0.4)
        x = w * (0.36 + 0.07 * i) + 6 * sin(t * 4 + i)
        draw.arc((x - 7, h * 0.4 - rise, x + 7, h * 0.5 - rise), 200, 520, fill=(235, 235, 235), width=2)
    x = w * (0.5 + 0.1 * cos(t * 3))
    draw.line((x, h * 0.6, x + w * 0.12, h * 0.12), fill=(170, 120, 70), width=6)


def _meadow(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    for i in range(3):
        x, y = (w * 0.3 * i + t * 22) % (w * 1.2) - w * 0.1, h * (0.55 + 0.1 * i)
        draw.ellipse((x - 28, y - 16, x + 28, y + 14), fill=(120, 84, 50))
        draw.ellipse((x + 20, y - 28, x + 42, y - 8), fill=(140, 100, 60))
        draw.polygon([(x + 24, y - 26), (x + 28, y - 38), (x + 33, y - 27)], fill=(100, 70, 40))
        for k in (-18, -8, 8, 18):
            draw.line((x + k, y + 10, x + k + 6 * sin(t * 6 + k), y + 30), fill=(90, 60, 36), width=4)
    for i in range(4):
        x, y = (w - t * 35 - i * 70) % w, h * (0.12 + 0.05 * i)
        flap = 6 * sin(t * 10 + i)
        draw.line((x - 9, y - flap, x, y, x + 9, y - flap), fill=INK, width=2)


def _road(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    draw.polygon([(w * 0.42, h * 0.3), (w * 0.58, h * 0.3), (w * 1.05, h), (-w * 0.05, h)], fill=(30, 30, 34))
    for i in range(7):
        depth = ((i + t * 2) % 7) / 7
        y, size = h * (0.3 + 0.7 * depth**2), 1 + 7 * depth
        draw.line((w / 2, y, w / 2, y + 3 * size), fill=(240, 240, 200), width=int(size))
    for i, colour in enumerate([(190, 30, 30), (40, 70, 170), (230, 230, 235)]):
        depth = ((i * 0.37 + t * 0.22) % 1) ** 1.5
        x, y, size = w * (0.5 + (i - 1) * 0.3 * depth), h * (0.32 + 0.6 * depth), 6 + 46 * depth
        draw.rounded_rectangle((x - size, y - size * 0.5, x + size, y + size * 0.5), 4, fill=colour)
        draw.rectangle((x - size * 0.6, y - size, x + size * 0.6, y - size * 0.5), fill=(150, 190, 210))
        draw.ellipse((x - size, y + size * 0.3, x - size * 0.5, y + size * 0.8), fill=INK)
        draw.ellipse((x + size * 0.5, y + size * 0.3, x + size, y + size * 0.8), fill=INK)


def _blackboard(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    draw.rectangle((w * 0.08, h * 0.08, w * 0.92, h * 0.7), fill=(28, 62, 48), outline=(140, 100, 60), width=5)
    formulas = ["a + b = c", "3x + 5 = 20", "x = 5", "y = 2x + 1"]
    draw.text((w * 0.14, h * 0.14), formulas[int(t / 4) % len(formulas)], fill=(240, 240, 235), font=_font(22))
    points = [(w * (0.5 + 0.004 * k), h * (0.55 - 0.12 * sin(k * 0.07 + t))) for k in range(90)]
    draw.line(points, fill=(250, 220, 120), width=2)
    x = w * (0.25 + 0.15 * sin(t * 0.8))
    draw.ellipse((x - 14, h * 0.42, x + 14, h * 0.58), fill=SKIN)
    draw.rectangle((x - 18, h * 0.58, x + 18, h), fill=(70, 80, 150))
    draw.line((x + 14, h * 0.66, x + 44, h * (0.5 + 0.05 * sin(t * 4))), fill=(70, 80, 150), width=8)


def _stage(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    for i, colour in enumerate([(230, 60, 160), (60, 200, 230), (250, 210, 60)]):
        x = w * (0.5 + 0.4 * sin(t * 0.2 + 2 * i))
        draw.polygon([(w * (0.2 + 0.3 * i), 0), (x - 16, h * 0.85), (x + 16, h * 0.85)], fill=colour)
    draw.rectangle((0, h * 0.82, w, h), fill=(40, 26, 30))
    for i in range(4):
        x, y = w * (0.2 + 0.2 * i), h * 0.6 + 5 * sin(t * 8 + i)
        draw.ellipse((x - 9, y - 30, x + 9, y - 10), fill=SKIN)
        draw.rectangle((x - 11, y - 10, x + 11, y + 34), fill=(30, 30, 70))
        draw.line((x - 24, y + 14, x + 24, y - 4), fill=(170, 90, 30), width=5)


def _gadget(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    x, y = w * 0.5 + 8 * sin(t), h * 0.42
    draw.rounded_rectangle((x - w * 0.13, y - h * 0.38, x + w * 0.13, y + h * 0.38), 10, fill=INK)
    draw.rectangle((x - w * 0.11, y - h * 0.32, x + w * 0.11, y + h * 0.32), fill=(235, 240, 250))
    for i in range(12):
        row = (i // 3 + t * 0.8) % 4
        left, top = x - w * 0.1 + (i % 3) * w * 0.07, y - h * 0.31 + row * h * 0.15
        draw.rounded_rectangle((left, top, left + w * 0.05, top + h * 0.09), 4, fill=(40 + 17 * i, 220 - 15 * i, 160))


def _harbour(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    for i, colour in enumerate([(210, 150, 110), (230, 200, 140), (190, 110, 90), (220, 180, 170)]):
        left = w * (0.05 + 0.24 * i)
        draw.rectangle((left, h * (0.2 + 0.05 * (i % 2)), left + w * 0.2, h * 0.55), fill=colour)
        for k in range(4):
            x, y = left + 10 + 18 * (k % 2), h * 0.32 + 22 * (k // 2)
            draw.rectangle((x, y, x + 9, y + 12), fill=(70, 90, 110))
    draw.rectangle((0, h * 0.55, w, h), fill=(16, 56, 96))
    for i in range(6):
        y = h * (0.58 + 0.07 * i)
        points = [(x, y + 4 * sin(x * 0.06 + t * 3 + i)) for x in range(0, w + 8, 8)]
        draw.line(points, fill=(30, 110, 170), width=6)
    x = (t * 30) % (w * 1.2) - w * 0.1
    draw.polygon([(x - 26, h * 0.7), (x + 26, h * 0.7), (x + 16, h * 0.8), (x - 16, h * 0.8)], fill=(150, 40, 30))
    draw.polygon([(x, h * 0.68), (x, h * 0.4), (x + 22, h * 0.66)], fill=(245, 245, 240))


def _roulette(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    x, y, radius = w * 0.36, h * 0.42, h * 0.36
    box = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse((x - radius * 1.1, y - radius * 1.1, x + radius * 1.1, y + radius * 1.1), fill=(110, 66, 30))
    for i in range(18):
        turn = t * 50 + i * 20
        draw.pieslice(box, int(turn), int(turn) + 20, fill=(180, 24, 30) if i % 2 else INK)
    draw.ellipse((x - radius * 0.5, y - radius * 0.5, x + radius * 0.5, y + radius * 0.5), fill=(196, 160, 90))
    ball = -t * 2.6
    bx, by = x + radius * 0.92 * cos(ball), y + radius * 0.92 * sin(ball)
    draw.ellipse((bx - 4, by - 4, bx + 4, by + 4), fill=(250, 250, 250))
    for i in range(4):
        left = w * (0.66 + 0.08 * i) + 3 * sin(t * 2 + i)
        for k in range(3 + i % 3):
            top = h * 0.7 - 6 * k
            draw.ellipse(
                (left - 10, top - 5, left + 10, top + 5), fill=[(40, 70, 200), (230, 190, 40), (220, 40, 50)][i % 3]
            )


def _fire(draw: ImageDraw.ImageDraw, w: int, h: int, t: float) -> None:
    for row in range(5):
        for column in range(9):
            left, top = w * (column - 0.5 * (row % 2)) / 8, h * row / 6
            draw.rectangle((left, top, left + w / 8 - 3, top + h / 6 - 3), fill=(58, 34, 30))
    for scale, colour in ((1.0, (220, 60, 16)), (0.72, (250, 140, 20)), (0.42, (255, 226, 110))):
        points = [(w * 0.08, h * 0.83)]
        for i in range(13):
            flicker = 0.6 + 0.4 * sin(t * (7 + i % 3) + 2.3 * i)
            tall = scale * (0.75 if i % 2 else 0.3) * flicker
            points.append((w * (0.5 + (i - 6) * 0.065 * (0.6 + 0.4 * scale)) + 5 * sin(t * 5 + i), h * (0.83 - tall)))
        draw.polygon([*points, (w * 0.92, h * 0.83)], fill=colour)
    for i in range(10):
        x, y = w * (0.15 + 0.07 * i) + 8 * sin(t * 3 + i), h * (0.7 - (t * 0.5 + i * 0.13) % 0.7)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 190, 80))


# name: (top colour, bottom colour, painter)
PICTURES: dict[str, tuple[Colour, Colour, Callable[[ImageDraw.ImageDraw, int, int, float], None]]] = {
    "studio": ((40, 60, 110), (20, 24, 50), _studio),
    "forecast": ((120, 180, 230), (60, 110, 180), _forecast),
    "pitch": ((60, 150, 70), (40, 120, 50), _pitch),
    "stove": ((200, 190, 170), (150, 130, 110), _stove),
    "meadow": ((150, 200, 240), (90, 160, 70), _meadow),
    "road": ((70, 80, 100), (40, 46, 42), _road),
    "blackboard": ((190, 180, 160), (140, 130, 120), _blackboard),
    "stage": ((30, 10, 40), (70, 20, 60), _stage),
    "gadget": ((70, 66, 84), (26, 24, 36), _gadget),
    "harbour": ((54, 36, 84), (24, 26, 60), _harbour),
    "roulette": ((20, 90, 60), (10, 60, 40), _roulette),
    "fire": ((34, 24, 26), (20, 14, 14), _fire),
}


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@dataclass(frozen=True, slots=True)
class Look:
    """How one shot differs from others of the same picture; the title is left as it is."""

    phase_s: float
    """Where in its movement the shot starts."""
    pace: float
    """Speed of the movement, 1 is that of the script."""
    gains: tuple[float, float, float]
    """Of red, green and blue."""
    mirrored: bool


class ScenePainter:
    """One shot: a scrolling background, what moves in front of it, and a title burned into the picture."""

    def __init__(
        self, picture: str, title: str, width: int, height: int, rng: np.random.Generator, look: Look | None = None
    ) -> None:
        self.width, self.height = width, height
        self._look = look
        self._gains = [min(255, int(level * gain)) for gain in look.gains for level in range(256)] if look else []
        top, bottom, self._painter = PICTURES[picture]
        self._speed = float(rng.uniform(5, 25))
        ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        base = np.array(top, np.float32) * (1 - ramp) + np.array(bottom, np.float32) * ramp  # [H, 1, 3]
        coarse = rng.normal(0, 12, (height // 12 + 1, width // 12 + 1)).astype(np.float32)
        texture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        self._background = np.clip(base + texture[:, :, None], 0, 255).astype(np.uint8)  # [H, W, 3]
        self._strip: Image.Image | None = None
        if title:
            self._strip = Image.new("RGB", (width, int(height * 0.15)), (16, 18, 30))
            ImageDraw.Draw(self._strip).text((10, height // 100), title, fill=(255, 255, 255), font=_font(height // 10))

    def frame(self, t_s: float) -> Picture:
        """The picture [H, W, 3] at `t_s` seconds after the cut."""
        if self._look is not None:
            t_s = self._look.phase_s + t_s * self._look.pace
        image = Image.fromarray(np.roll(self._background, int(t_s * self._speed), axis=1))
        self._painter(ImageDraw.Draw(image), self.width, self.height, t_s)
        if self._look is not None:
            image = image.point(self._gains)
            if self._look.mirrored:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._strip is not None:
            image.paste(self._strip, (0, int(self.height * 0.84)))
        return np.asarray(image)


def _noise(n: int, low_hz: float, high_hz: float, rng: np.random.Generator) -> FloatArray:
    """White noise between two frequencies, peak about 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    hz = np.fft.rfftfreq(n, 1 / SYNTH_RATE)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0
    wave = np.fft.irfft(spectrum, n)
    return np.asarray(wave / (np.abs(wave).max() + 1e-9), dtype=np.float32)


def _speech(n: int, rng: np.random.Generator) -> FloatArray:
    """Babble with the rhythm and formants of speech but no words (vowel formants of Peterson and Barney, 1952)."""
    vowels = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])
    time = np.arange(n) / SYNTH_RATE
    knots = np.arange(0, n / SYNTH_RATE + 0.25, 0.25)  # four syllables a second
    track = vowels[rng.integers(0, len(vowels), len(knots))]  # [syllables, 3 formants]
    pitch = np.interp(time, knots, rng.uniform(100, 160, len(knots)))
    phase = 2 * pi * np.cumsum(pitch) / SYNTH_RATE
    loud = np.interp(time, knots, np.where(rng.random(len(knots)) < 0.15, 0.0, 1.0)) * np.abs(np.sin(pi * time / 0.25))
    formants = [np.interp(time, knots, track[:, i]) for i in range(3)]
    wave = np.zeros(n)
    for k in range(1, 24):
        gain = sum(1 / (1 + ((k * pitch - f) / 90) ** 2) * g for f, g in zip(formants, (1.0, 0.5, 0.2), strict=True))
        wave += gain * np.sin(k * phase)
    return np.asarray(wave * loud / (np.abs(wave).max() + 1e-9), dtype=np.float32)


def _melody(n: int, rng: np.random.Generator) -> FloatArray:
    """Plucked notes of a pentatonic scale over a bass."""
    wave = np.zeros(n, np.float32)
    length = SYNTH_RATE // 2
    time = np.arange(length * 2) / SYNTH_RATE
    for start in range(0, n, length):
        for hz, gain in ((220 * 2 ** (rng.choice([0, 2, 4, 7, 9, 12]) / 12), 0.5), (110.0, 0.3)):
            note = sum(np.sin(2 * pi * hz * k * time) / k for k in range(1, 5)) * np.exp(-4 * time) * gain
            end = min(n, start + len(time))
            wave[start:end] += note[: end - start].astype(np.float32)
    return wave


def _chirps(n: int, rng: np.random.Generator) -> FloatArray:
    """Short rising calls, as of birds, over a breeze."""
    wave = 0.1 * _noise(n, 100, 800, rng)
    time = np.arange(SYNTH_RATE // 8) / SYNTH_RATE
    for start in range(0, n - len(time), SYNTH_RATE // 3):
        sweep = rng.uniform(2000, 4000) * time + rng.uniform(4000, 12000) * time**2
        wave[start : start + len(time)] += (np.sin(2 * pi * sweep) * np.hanning(len(time))).astype(np.float32)
    return wave


def _swell(n: int, period_s: float) -> FloatArray:
    return (0.6 + 0.4 * np.sin(2 * pi * np.arange(n) / SYNTH_RATE / period_s)).astype(np.float32)


def _engine(n: int, rng: np.random.Generator) -> FloatArray:
    time = np.arange(n) / SYNTH_RATE
    turn = 2 * pi * np.cumsum(45 + 8 * np.sin(2 * pi * time / 4)) / SYNTH_RATE
    tone = sum(np.sin(k * turn) / k for k in range(1, 12))
    return (0.5 * tone + 0.3 * _noise(n, 60, 1500, rng)).astype(np.float32)


def _drone(n: int, rng: np.random.Generator) -> FloatArray:
    """A low minor chord held by strings that waver."""
    time = np.arange(n) / SYNTH_RATE
    wave = np.zeros(n)
    for step in (0, 3, 7, 12):
        hz = 82.4 * 2 ** (step / 12) * (1 + 0.004 * rng.uniform(-1, 1))
        waver = 1 + 0.3 * np.sin(2 * pi * rng.uniform(0.3, 0.8) * time + rng.uniform(0, 2 * pi))
        wave += waver * sum(np.sin(2 * pi * hz * k * time) / k for k in range(1, 7))
    return wave.astype(np.float32)


def _roar(n: int, rng: np.random.Generator) -> FloatArray:
    """A crowd that shouts, whistles and claps: bright noise with claps that are not in step."""
    time = np.arange(n) / SYNTH_RATE
    wave = 0.8 * _noise(n, 500, 7000, rng)
    for start in rng.integers(0, n, max(1, n * 40 // SYNTH_RATE)):  # 40 claps a second
        clap = rng.standard_normal(min(240, n - start)) * np.exp(-np.arange(min(240, n - start)) / 60)
        wave[start : start + 240] += 0.5 * clap.astype(np.float32)
    wave += (0.25 * np.sin(2 * pi * (1900 * time + 60 * np.sin(2 * pi * 3 * time)))).astype(np.float32)
    return wave


def _bang(n: int, rng: np.random.Generator) -> FloatArray:
    """Blasts that follow each other, with a rumble that does not end in between."""
    wave = 0.3 * _noise(n, 25, 160, rng)
    start = 0
    while start < n:
        time = np.arange(min(SYNTH_RATE, n - start)) / SYNTH_RATE
        thump = np.sin(2 * pi * 55 * time * np.exp(-time)) * np.exp(-3 * time)
        crack = _noise(len(time), 80, 6000, rng) * np.exp(-9 * time)
        wave[start : start + len(time)] += (thump + crack).astype(np.float32)
        start += int(rng.uniform(0.3, 0.6) * SYNTH_RATE)
    return wave


SOUNDS: dict[str, Callable[[int, np.random.Generator], FloatArray]] = {
    "speech": _speech,
    "melody": _melody,
    "chirps": _chirps,
    "engine": _engine,
    "crowd": lambda n, rng: _noise(n, 200, 3000, rng) * _swell(n, 5.0),
    "sizzle": lambda n, rng: _noise(n, 3000, 8000, rng) * np.abs(_noise(n, 1, 12, rng)),
    "wind": lambda n, rng: _noise(n, 40, 500, rng) * _swell(n, 3.0),
    "drone": _drone,
    "roar": _roar,
    "bang": _bang,
}


def synthesise(sound: str, duration_s: float, rng: np.random.Generator) -> FloatArray:
    """A sound [N] at `SYNTH_RATE`, peak 0.5, with short fades so that cuts do not click."""
    n = round(duration_s * SYNTH_RATE)
    fade = np.minimum(1.0, np.minimum(np.arange(n), np.arange(n)[::-1]) / (0.01 * SYNTH_RATE))
    wave = SOUNDS[sound](n, rng) * fade
    return np.asarray(0.5 * wave / (np.abs(wave).max() + 1e-9), dtype=np.float32)
