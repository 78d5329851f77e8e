"""What is told of an autoscaler's nodes. (`test_jobs.py` has a real one.)"""

from google.protobuf.text_format import Parse
from ray.core.generated.autoscaler_pb2 import AutoscalingState

from distil_ray.training.waiting import describe

STATE = """
pending_instance_requests { ray_node_type_name: "gpu" count: 2 }
pending_instances { ray_node_type_name: "gpu" instance_id: "i-1" }
pending_instances { ray_node_type_name: "cpu" instance_id: "i-2" }
failed_instance_requests { ray_node_type_name: "gpu" count: 1 reason: "InsufficientInstanceCapacity" }
infeasible_resource_requests {
  resources_bundle { key: "CPU" value: 1 }
  label_selectors { label_constraints { label_key: "ray-subcluster" label_values: "data" } }
}
infeasible_gang_resource_requests {
  requests { resources_bundle { key: "GPU" value: 1 } resources_bundle { key: "CPU" value: 0.5 } }
  requests { resources_bundle { key: "CPU" value: 0.5 } resources_bundle { key: "GPU" value: 1 } }
}
"""


def test_nodes_that_come_fail_or_cannot_be():
    advice = "; ask for less in runtime, or raise max_workers of a node type that has it"
    assert describe(Parse(STATE, AutoscalingState())) == [
        "autoscaler: 3 × gpu is starting",
        "autoscaler: 1 × cpu is starting",
        "autoscaler: 1 × gpu could not be started: InsufficientInstanceCapacity",
        f"autoscaler: the cluster's node types cannot provide (1 CPU on nodes with ray-subcluster=data){advice}",
        f"autoscaler: the cluster's node types cannot provide 2 × (0.5 CPU, 1 GPU){advice}",
    ]


def test_an_autoscaler_without_work_is_silent():
    assert describe(AutoscalingState()) == []
