"""The three graphs of a bundle in ONNX Runtime: numpy in, numpy out. No torch.

The caches stay on the device that computes the decoder. They are bound as input and as output of every step, so that
new rows are written in place.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vl2.checkpoint.folder import read_model_config
from vl2.core.errors import SetupError
from vl2.edge.bundle import Manifest, check_files, read_manifest
from vl2.edge.engine_cache import EngineCache
from vl2.edge.providers import NAMES, Option, choose_providers
from vl2.edge.tensorrt import engine_graph

log = logging.getLogger(__name__)

ENGINES = Path("~/.cache/vl2/engines")
QUIET = 3  # errors only: warnings are about nodes that run on the CPU, as they shall
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Network:
    """One model, loaded. Not thread-safe: one thread owns it."""

    def __init__(self, folder: Path, *, num_slots: int, provider: str = "auto", threads: int | None = None) -> None:
        """`num_slots`: rows of the caches, one a token. Raises: SetupError."""
        self.folder, self.manifest = folder, read_manifest(folder)
        check_files(folder, self.manifest)
        self.config = read_model_config(folder)
        engines = EngineCache(ENGINES.expanduser(), _engine_key(self.manifest))
        side = self.config.tile_geometry.side
        self.providers = choose_providers(provider, ort.get_available_providers(), engines.folder, side)
        self._vision = self._vision_session(engines, threads)
        self._embedding = self._session(folder / "embedding.onnx", [(NAMES["cpu"], {})], 1)
        self._decoder = self._session(folder / "decoder.onnx", self.providers.decoder, threads)
        self._allocate(num_slots)

    def _vision_session(self, engines: EngineCache, threads: int | None) -> ort.InferenceSession:
        """With TensorRT: the engine that trtexec built, or engines that ONNX Runtime builds now and keeps."""
        graph, providers = self.folder / "vision.onnx", self.providers.vision
        if self.providers.name != "tensorrt":
            return self._session(graph, providers, threads)
        wrapper = engine_graph(self.folder, self.manifest)
        if wrapper is not None:
            return self._session(wrapper, providers, threads)
        is_built = engines.open()
        session = self._session(graph, providers, threads)
        if not is_built:
            log.info("TensorRT builds its engines, which takes minutes; they are kept in %s", engines.folder)
            side = self.config.tile_geometry.side
            session.run(["features"], {"tiles": np.zeros((1, side, side, 3), np.uint8)})
            engines.seal()
        return session

    def _session(self, path: Path, providers: list[Option], threads: int | None) -> ort.InferenceSession:
        """Raises: SetupError, one line."""
        options = ort.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = threads or 0
        # Threads that spin while they wait slow down whatever else runs; sleeping ones were as fast or faster.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's own classes share no base of their own
            raise SetupError(_explained(path, error)) from None
        got, wanted = session.get_providers(), providers[0][0]
        if wanted not in got:
            raise SetupError(
                f"onnxruntime could not start {wanted} and offers {', '.join(got)} instead: its libraries, or the "
                f"driver, are missing or of another version; use --provider cpu"
            )
        return session

    def _allocate(self, num_slots: int) -> None:
        inputs = {value.name: value for value in self._decoder.get_inputs()}
        self.num_slots, self._caches = num_slots, []
        self._binding = self._decoder.io_binding()
        self._binding.bind_output("logits", "cpu")  # before the caches: `step` takes the first output
        for layer in range(self.config.language.layers):
            value = inputs[f"cache.{layer}"]
            zeros = np.zeros((num_slots, value.shape[1]), NUMPY_TYPES[value.type])
            cache = ort.OrtValue.ortvalue_from_numpy(zeros, self.providers.device, 0)
            self._binding.bind_ortvalue_input(f"cache.{layer}", cache)
            self._binding.bind_ortvalue_output(f"cache_out.{layer}", cache)
            self._caches.append(cache)

    @property
    def cache_bytes(self) -> int:
        return sum(cache.tensor_size_in_bytes() for cache in self._caches)

    @property
    def weights_bytes(self) -> int:
        return sum(entry.bytes for name, entry in self.manifest.files.items() if name.endswith(".data"))

    def encode_tiles(self, tiles: np.ndarray) -> np.ndarray:
        """tiles [N, side, side, 3] uint8 → [N, Q, C] float32."""
        (features,) = self._vision.run(["features"], {"tiles": tiles})
        return np.asarray(features)

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """ids [T] int64; V is the end of a row of picture tokens, V + 1 stands between views. → [T, C] float32."""
        (embeds,) = self._embedding.run(["embeds"], {"ids": ids})
        return np.asarray(embeds)

    def step(
        self,
        embeds: np.ndarray,
        positions: np.ndarray,
        new_slots: np.ndarray,
        context_slots: np.ndarray,
        logit_rows: np.ndarray,
    ) -> np.ndarray:
        """One step of one sequence; see `decoder_graph.build_decoder`. → logits [L, V] float32."""
        binding = self._binding
        feeds = (embeds, positions, new_slots, context_slots, logit_rows)
        names = ("embeds", "positions", "new_slots", "context_slots", "logit_rows")
        for name, array in zip(names, feeds, strict=True):
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output("logits", "cpu")  # anew, as its size changes
        self._decoder.run_with_iobinding(binding)
        return np.asarray(binding.get_outputs()[0].numpy())


def _engine_key(manifest: Manifest) -> bytes:
    return b"\n".join((manifest.digest, ort.__version__.encode(), ort.get_device().encode()))


def _explained(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "memory" in text.lower() or isinstance(error, MemoryError):
        return f"there is not enough memory to load {path} ({text[:200]}); export it with --precision int8 or fp16"
    return (
        f"onnxruntime {ort.__version__} cannot load {path}: {text[:300]}; install a newer onnxruntime, "
        f"or export the model again with this version of vl2"
    )
