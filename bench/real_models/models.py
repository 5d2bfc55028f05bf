"""The four models: the packages' weights in torch.nn's modules, an input, and what the package's own code says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from ...cells.base import RecurrentBase
from ...cells.stateful import Stateful
from .packages import import_from
from .voice import mel_frames, voice

WHICH = ("ih", "hh")


class Answer(NamedTuple):
    """What a model answers: numbers, and what a user of the package would read off them."""

    numbers: Tensor
    reading: str


class RealModel:
    """A trained model of somebody's and an input for it.

    model:  in eval mode, of torch.nn's modules.
    """

    package: ClassVar[str]
    licence: ClassVar[str]
    layers: ClassVar[str]
    model: nn.Module

    def __init__(self, folder: Path, quick: bool = False) -> None:
        """quick: a shorter input."""
        raise NotImplementedError

    def answer(self, model: nn.Module) -> Answer:
        """What `model`, this one's or converted or in another dtype, answers."""
        raise NotImplementedError

    def packages_own(self) -> Answer | None:
        """What the package's own code answers, where that is not torch.nn's modules."""
        return None


class Resemblyzer(RealModel):
    """Who speaks: an embedding of 1.6 s of each of two voices."""

    package = "Resemblyzer 0.1.4"
    licence = "Apache-2.0"
    layers = "LSTM 40→256, 3 layers"

    def __init__(self, folder: Path, quick: bool = False) -> None:
        package = import_from(folder, "resemblyzer.voice_encoder", absent=("resemblyzer.audio",))
        self.model = package.VoiceEncoder(device="cpu", verbose=False).eval()
        frames = 16 if quick else 160  # what the package itself cuts speech into
        voices = [mel_frames(voice(pitch, 1.7, tract))[:frames] for pitch, tract in ((110.0, 1.0), (210.0, 1.17))]
        self.mels = torch.stack(voices)

    def answer(self, model: nn.Module) -> Answer:
        weight = next(model.parameters())
        embeddings = model(self.mels.to(weight.device, weight.dtype)).cpu()
        return Answer(embeddings, f"voices alike to {float(embeddings[0] @ embeddings[1]):.4f}")


class SequenceToSequence(nn.Module):
    """g2p-en's encoder and decoder, which the package computes in NumPy, letters to phonemes."""

    BEGIN, END = 2, 3
    MOST = 20  # phonemes of a word

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.letters, self.encoder = self._side(arrays, "enc")
        self.phonemes, self.decoder = self._side(arrays, "dec")
        self.head = nn.Linear(*arrays["fc_w"].shape[::-1])
        head = {"weight": arrays["fc_w"], "bias": arrays["fc_b"]}
        self.head.load_state_dict({name: torch.from_numpy(array) for name, array in head.items()})

    @staticmethod
    def _side(arrays: dict[str, np.ndarray], side: str) -> tuple[nn.Embedding, nn.GRU]:
        embedding = nn.Embedding.from_pretrained(torch.from_numpy(arrays[f"{side}_emb"]))
        gru = nn.GRU(embedding.embedding_dim, arrays[f"{side}_w_hh"].shape[1])
        names = {f"{kind}_{which}_l0": f"{side}_{kind[0]}_{which}" for kind in ("weight", "bias") for which in WHICH}
        gru.load_state_dict({name: torch.from_numpy(arrays[theirs]) for name, theirs in names.items()})
        return embedding, gru

    def forward(self, words: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [steps, words, phonemes], zero after a word's end, and the likeliest phonemes [steps, words]."""
        _, h = self.encoder(pack_sequence([self.letters(word) for word in words], enforce_sorted=False))
        best = torch.full((len(words),), self.BEGIN, device=h.device)
        going_on = torch.ones_like(best, dtype=torch.bool)
        logits: list[Tensor] = []
        phonemes: list[Tensor] = []
        while going_on.any() and len(phonemes) < self.MOST:
            y, h = self.decoder(self.phonemes(best)[None], h)
            logits.append(torch.where(going_on[:, None], self.head(y[0]), 0))
            best = logits[-1].argmax(-1)
            going_on = going_on & (best != self.END)
            phonemes.append(torch.where(going_on, best, self.END))
        return torch.stack(logits), torch.stack(phonemes)


class G2pEn(RealModel):
    """How words that no dictionary has are pronounced: phonemes, of words of different lengths in one batch."""

    package = "g2p-en 2.1.0"
    licence = "Apache-2.0"
    layers = "GRU 64→256, encoder and decoder"
    words: ClassVar = ("holdfast", "triton", "cuda", "activationist", "zoneout", "peephole", "a", "unrolledness")

    def __init__(self, folder: Path, quick: bool = False) -> None:
        absent = ("nltk", "nltk.corpus", "nltk.tokenize", "g2p_en.expand")
        self.own = import_from(folder, "g2p_en.g2p", absent).G2p()
        arrays = {name: np.ascontiguousarray(array) for name, array in self.own.variables.items()}
        self.model = SequenceToSequence(arrays).eval()
        self.read = self.words[:3] if quick else self.words

    def answer(self, model: nn.Module) -> Answer:
        device = next(model.parameters()).device
        letters = [[self.own.g2idx[letter] for letter in (*word, "</s>")] for word in self.read]
        logits, phonemes = model([torch.tensor(word, device=device) for word in letters])
        spoken = [
            " ".join(self.own.idx2p[p] for p in word if p != SequenceToSequence.END) for word in phonemes.t().tolist()
        ]
        return Answer(logits.cpu(), "; ".join(spoken))

    def packages_own(self) -> Answer:
        spoken = [" ".join(self.own.predict(word)) for word in self.read]
        return Answer(torch.empty(0), "; ".join(spoken))


class ArabicDiacritizer(RealModel):
    """Which vowel marks an Arabic sentence, written without, is read with."""

    package = "arabic-diacritizer 1.0.0"
    licence = "MIT"
    layers = "BiLSTM 128→256, 3 layers"
    sentence = "ذهب الولد إلى المدرسة"

    def __init__(self, folder: Path, quick: bool = False) -> None:
        package = import_from(folder, "diacritize.baseline.model")
        self.names = package.ID_TO_LABEL
        self.model = package.BiLSTMDiacritizer.from_pretrained().eval()
        text = self.sentence[:8] if quick else self.sentence
        self.letters = torch.tensor([cast(Any, self.model).tokenizer.encode(text, add_special=False)])

    def answer(self, model: nn.Module) -> Answer:
        logits = model(self.letters.to(next(model.parameters()).device)).cpu()
        return Answer(logits, " ".join(self.names[mark] or "-" for mark in logits[0].argmax(-1).tolist()))


class Streaming(nn.Module):
    """silero-vad's recurrent layer and what reads the answer off it."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.lstm = nn.LSTM(128, 128)
        names = [f"{kind}_{which}" for kind in ("weight", "bias") for which in WHICH]
        self.lstm.load_state_dict({f"{name}_l0": weights[f"rnn.{name}"] for name in names})
        self.head = nn.Linear(128, 1)
        self.head.load_state_dict({"weight": weights["decoder.2.weight"][..., 0], "bias": weights["decoder.2.bias"]})

    def forward(self, chunks: list[Tensor]) -> Tensor:
        """The probability of speech in each frame, [frames], of chunks [frames of this chunk, 1, 128]."""
        if isinstance(self.lstm, RecurrentBase):
            stream = Stateful(self.lstm)
            outputs = [stream(chunk) for chunk in chunks]
        else:
            outputs, state = [], None
            for chunk in chunks:
                output, state = self.lstm(chunk, state)
                outputs.append(output)
        return self.head(torch.cat(outputs).relu()).sigmoid().flatten()


class SileroVad(RealModel):
    """Where somebody speaks: half a second of silence, then a voice, in chunks as they come from a microphone."""

    package = "silero-vad 6.2.3"
    licence = "MIT"
    layers = "LSTM 128→128, streamed"
    SAMPLES, CONTEXT = 512, 64

    def __init__(self, folder: Path, quick: bool = False) -> None:
        self.own = torch.jit.load(str(folder / "silero_vad" / "data" / "silero_vad.jit"), map_location="cpu").eval()
        sound = torch.cat((torch.zeros(8000), voice(120.0, 0.3 if quick else 1.0)))
        frames = sound[: len(sound) // self.SAMPLES * self.SAMPLES].view(-1, self.SAMPLES)
        before = torch.cat((torch.zeros(1, self.CONTEXT), frames[:-1, -self.CONTEXT :]))
        network = self.own._model
        with torch.no_grad():
            features = network.encoder(network.run_extractors(torch.cat((before, frames), 1)))
        self.model = Streaming(network.decoder.state_dict()).eval()
        self.frames = frames
        self.chunks = list(features.movedim(-1, 1).split(4))

    def answer(self, model: nn.Module) -> Answer:
        weight = next(model.parameters())
        return self._read(model([chunk.to(weight.device, weight.dtype) for chunk in self.chunks]).cpu())

    def packages_own(self) -> Answer:
        self.own.reset_states()
        return self._read(torch.cat([self.own(frame[None], 16_000)[0] for frame in self.frames]))

    def _read(self, probabilities: Tensor) -> Answer:
        spoken = (probabilities > 0.5).nonzero().flatten().tolist()
        return Answer(probabilities, f"speech in frames {spoken[0]} to {spoken[-1]}" if spoken else "no speech")


MODELS: tuple[type[RealModel], ...] = (Resemblyzer, G2pEn, ArabicDiacritizer, SileroVad)
