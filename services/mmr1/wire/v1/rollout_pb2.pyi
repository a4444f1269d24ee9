from mmr1.wire.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SERVER_STATE_UNSPECIFIED: _ClassVar[ServerState]
    SERVER_STATE_STARTING: _ClassVar[ServerState]
    SERVER_STATE_ACCEPTS_WEIGHTS: _ClassVar[ServerState]
    SERVER_STATE_UPDATING: _ClassVar[ServerState]
    SERVER_STATE_PAUSED: _ClassVar[ServerState]
    SERVER_STATE_SERVES: _ClassVar[ServerState]
    SERVER_STATE_BROKEN: _ClassVar[ServerState]
    SERVER_STATE_DRAINING: _ClassVar[ServerState]
SERVER_STATE_UNSPECIFIED: ServerState
SERVER_STATE_STARTING: ServerState
SERVER_STATE_ACCEPTS_WEIGHTS: ServerState
SERVER_STATE_UPDATING: ServerState
SERVER_STATE_PAUSED: ServerState
SERVER_STATE_SERVES: ServerState
SERVER_STATE_BROKEN: ServerState
SERVER_STATE_DRAINING: ServerState

class Writer(_message.Message):
    __slots__ = ("schema_version", "run", "incarnation")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    run: str
    incarnation: int
    def __init__(self, schema_version: _Optional[int] = ..., run: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("schema_version",)
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    def __init__(self, schema_version: _Optional[int] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("schema_version", "server_id", "state", "version", "num_running_prompts", "num_generated_tokens", "model", "dtype", "package_versions", "detail", "preprocessing", "devices")
    class PackageVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class PreprocessingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    server_id: str
    state: ServerState
    version: _records_pb2.PolicyVersion
    num_running_prompts: int
    num_generated_tokens: int
    model: str
    dtype: str
    package_versions: _containers.ScalarMap[str, str]
    detail: str
    preprocessing: _containers.ScalarMap[str, str]
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, schema_version: _Optional[int] = ..., server_id: _Optional[str] = ..., state: _Optional[_Union[ServerState, str]] = ..., version: _Optional[_Union[_records_pb2.PolicyVersion, _Mapping]] = ..., num_running_prompts: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., model: _Optional[str] = ..., dtype: _Optional[str] = ..., package_versions: _Optional[_Mapping[str, str]] = ..., detail: _Optional[str] = ..., preprocessing: _Optional[_Mapping[str, str]] = ..., devices: _Optional[_Iterable[str]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("schema_version", "prompt", "probe")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    prompt: _records_pb2.Prompt
    probe: bool
    def __init__(self, schema_version: _Optional[int] = ..., prompt: _Optional[_Union[_records_pb2.Prompt, _Mapping]] = ..., probe: bool = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("group",)
    GROUP_FIELD_NUMBER: _ClassVar[int]
    group: _records_pb2.Group
    def __init__(self, group: _Optional[_Union[_records_pb2.Group, _Mapping]] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("writer", "deadline_seconds")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    writer: Writer
    deadline_seconds: float
    def __init__(self, writer: _Optional[_Union[Writer, _Mapping]] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ("waited_seconds",)
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    waited_seconds: float
    def __init__(self, waited_seconds: _Optional[float] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("writer", "version")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    writer: Writer
    version: _records_pb2.PolicyVersion
    def __init__(self, writer: _Optional[_Union[Writer, _Mapping]] = ..., version: _Optional[_Union[_records_pb2.PolicyVersion, _Mapping]] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class AdapterSpec(_message.Message):
    __slots__ = ("rank", "alpha", "tensors")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: float
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[float] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ...) -> None: ...

class InitWeightTransferRequest(_message.Message):
    __slots__ = ("writer", "transport", "master_address", "master_port", "store_prefix", "rank", "world_size", "tensors", "bucket_bytes", "deadline_seconds", "adapter")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    MASTER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MASTER_PORT_FIELD_NUMBER: _ClassVar[int]
    STORE_PREFIX_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    BUCKET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    writer: Writer
    transport: str
    master_address: str
    master_port: int
    store_prefix: str
    rank: int
    world_size: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    bucket_bytes: int
    deadline_seconds: float
    adapter: AdapterSpec
    def __init__(self, writer: _Optional[_Union[Writer, _Mapping]] = ..., transport: _Optional[str] = ..., master_address: _Optional[str] = ..., master_port: _Optional[int] = ..., store_prefix: _Optional[str] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., bucket_bytes: _Optional[int] = ..., deadline_seconds: _Optional[float] = ..., adapter: _Optional[_Union[AdapterSpec, _Mapping]] = ...) -> None: ...

class InitWeightTransferResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StartWeightUpdateRequest(_message.Message):
    __slots__ = ("writer", "version", "deadline_seconds")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    writer: Writer
    version: _records_pb2.PolicyVersion
    deadline_seconds: float
    def __init__(self, writer: _Optional[_Union[Writer, _Mapping]] = ..., version: _Optional[_Union[_records_pb2.PolicyVersion, _Mapping]] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class StartWeightUpdateResponse(_message.Message):
    __slots__ = ("waited_seconds",)
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    waited_seconds: float
    def __init__(self, waited_seconds: _Optional[float] = ...) -> None: ...

class UpdateWeightsRequest(_message.Message):
    __slots__ = ("writer", "version", "deadline_seconds")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    writer: Writer
    version: _records_pb2.PolicyVersion
    deadline_seconds: float
    def __init__(self, writer: _Optional[_Union[Writer, _Mapping]] = ..., version: _Optional[_Union[_records_pb2.PolicyVersion, _Mapping]] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class Fingerprint(_message.Message):
    __slots__ = ("name", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[int] = ...) -> None: ...

class UpdateWeightsResponse(_message.Message):
    __slots__ = ("fingerprints",)
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    fingerprints: _containers.RepeatedCompositeFieldContainer[Fingerprint]
    def __init__(self, fingerprints: _Optional[_Iterable[_Union[Fingerprint, _Mapping]]] = ...) -> None: ...

class FinishWeightUpdateRequest(_message.Message):
    __slots__ = ("writer", "version", "deadline_seconds")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    writer: Writer
    version: _records_pb2.PolicyVersion
    deadline_seconds: float
    def __init__(self, writer: _Optional[_Union[Writer, _Mapping]] = ..., version: _Optional[_Union[_records_pb2.PolicyVersion, _Mapping]] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class FinishWeightUpdateResponse(_message.Message):
    __slots__ = ("num_parameters", "num_parameters_written", "num_packed_copies_refreshed")
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    NUM_PACKED_COPIES_REFRESHED_FIELD_NUMBER: _ClassVar[int]
    num_parameters: int
    num_parameters_written: int
    num_packed_copies_refreshed: int
    def __init__(self, num_parameters: _Optional[int] = ..., num_parameters_written: _Optional[int] = ..., num_packed_copies_refreshed: _Optional[int] = ...) -> None: ...
