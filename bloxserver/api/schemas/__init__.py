"""Request and response bodies, with one module per resource."""

from bloxserver.api.schemas.api_keys import ApiKey, CreateApiKeyRequest, CreatedApiKey
from bloxserver.api.schemas.audit import AuditEvent, AuditEventPage
from bloxserver.api.schemas.base import CursorPage, PaginatedResponse, RequestModel
from bloxserver.api.schemas.billing import Billing, BillingPage, Price, ReceivedEvent, StartCheckoutRequest
from bloxserver.api.schemas.deliveries import (
    CreatedSigningSecret,
    CreateSigningSecretRequest,
    Delivery,
    SigningSecret,
)
from bloxserver.api.schemas.errors import ApiError
from bloxserver.api.schemas.executions import (
    AwaitedExecution,
    Execution,
    ExecutionEvent,
    ExecutionOutline,
    ExecutionSummary,
    FlowExecutionSummary,
    RunRequest,
    Step,
    StepEvent,
    StepOutline,
)
from bloxserver.api.schemas.flows import CreateFlowRequest, Flow, FlowSummary, UpdateFlowRequest
from bloxserver.api.schemas.health import Health, Liveness, Readiness, ServiceInfo
from bloxserver.api.schemas.llm import LlmUsage, LlmUsageGroup
from bloxserver.api.schemas.organisms import (
    BlockDescription,
    DefinitionProblem,
    DerivedOrganism,
    DeriveRequest,
    FlowCanvas,
    Validation,
)
from bloxserver.api.schemas.secrets import CreateSecretRequest, Secret, SetSecretRequest
from bloxserver.api.schemas.statistics import FlowStats, SeriesBucket, StatsSeries
from bloxserver.api.schemas.triggers import (
    CreateTriggerRequest,
    Trigger,
    UpcomingFirings,
    UpdateTriggerRequest,
    WebhookAccepted,
    WebhookTest,
)
from bloxserver.api.schemas.users import (
    AddApiKeyRequest,
    ApiKeyInfo,
    EventReceived,
    LimitUse,
    UsageDashboard,
    UsagePeriod,
    User,
)
from bloxserver.api.schemas.versions import FlowVersion, FlowVersionSummary
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import (
    ActorKind,
    AuditAction,
    BillingStatus,
    ExecutionStatus,
    FlowStatus,
    InputEncoding,
    Scope,
    StepStatus,
    Tier,
    TriggerType,
)
from bloxserver.organism.react_flow import CanvasEdge, CanvasNode, CanvasState

__all__ = [
    "ActorKind",
    "AddApiKeyRequest",
    "ApiError",
    "ApiKey",
    "ApiKeyInfo",
    "AuditAction",
    "AuditEvent",
    "AuditEventPage",
    "AwaitedExecution",
    "Billing",
    "BillingPage",
    "BillingStatus",
    "BlockDescription",
    "CamelModel",
    "CanvasEdge",
    "CanvasNode",
    "CanvasState",
    "CreateApiKeyRequest",
    "CreateFlowRequest",
    "CreateSecretRequest",
    "CreateSigningSecretRequest",
    "CreateTriggerRequest",
    "CreatedApiKey",
    "CreatedSigningSecret",
    "CursorPage",
    "DefinitionProblem",
    "Delivery",
    "DeriveRequest",
    "DerivedOrganism",
    "EventReceived",
    "Execution",
    "ExecutionEvent",
    "ExecutionOutline",
    "ExecutionStatus",
    "ExecutionSummary",
    "Flow",
    "FlowCanvas",
    "FlowExecutionSummary",
    "FlowStats",
    "FlowStatus",
    "FlowSummary",
    "FlowVersion",
    "FlowVersionSummary",
    "Health",
    "InputEncoding",
    "LimitUse",
    "Liveness",
    "LlmUsage",
    "LlmUsageGroup",
    "PaginatedResponse",
    "Price",
    "Readiness",
    "ReceivedEvent",
    "RequestModel",
    "RunRequest",
    "Scope",
    "Secret",
    "SeriesBucket",
    "ServiceInfo",
    "SetSecretRequest",
    "SigningSecret",
    "StartCheckoutRequest",
    "StatsSeries",
    "Step",
    "StepEvent",
    "StepOutline",
    "StepStatus",
    "Tier",
    "Trigger",
    "TriggerType",
    "UpcomingFirings",
    "UpdateFlowRequest",
    "UpdateTriggerRequest",
    "UsageDashboard",
    "UsagePeriod",
    "User",
    "Validation",
    "WebhookAccepted",
    "WebhookTest",
]
