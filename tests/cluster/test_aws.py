"""The cluster on AWS, as far as it goes without AWS: made on moto's by our setup and Ray's own node provider."""

import importlib.util
import ipaddress
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

CLUSTER = Path(__file__).parents[2] / "cluster"
CIDR = "203.0.113.7/32"

_spec = importlib.util.spec_from_file_location("aws_setup", CLUSTER / "aws_setup.py")
aws_setup = importlib.util.module_from_spec(_spec)
sys.modules["aws_setup"] = aws_setup
_spec.loader.exec_module(aws_setup)


def cluster_file(folder: Path, **metadata: str) -> Path:
    """The cluster's YAML with what a user sets."""
    cluster = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    cluster["metadata"] |= {"ssh_cidr": CIDR, "storage": "s3://bucket/distil-ray"} | metadata
    (folder / "aws.yaml").write_text(yaml.safe_dump(cluster))
    return folder / "aws.yaml"


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An AWS account with a bucket, as far as moto imitates one: its EC2 client, and each request to start nodes."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts a key for SSH there
    monkeypatch.setattr(time, "sleep", lambda _: None)  # it waits for AWS
    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        ec2 = boto3.client("ec2", region_name="us-east-1")
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        launches: list[dict[str, Any]] = []
        monkeypatch.setattr(BaseClient, "_make_api_call", with_what_moto_lacks(image, launches))
        yield SimpleNamespace(ec2=ec2, launches=launches)


def with_what_moto_lacks(
    image: str, launches: list[dict[str, Any]]
) -> Callable[[Any, str, dict[str, Any]], dict[str, Any]]:
    """Calls of AWS, with placement groups and the parameter that names the newest image, which moto does not have.

    What is asked for when nodes are started is added to ``launches``.
    """
    by_moto = BaseClient._make_api_call
    groups: set[str] = set()

    def call(client: Any, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        name = arguments.get("GroupName") or arguments.get("GroupNames", [None])[0]
        if operation == "GetParameter":
            return {"Parameter": {"Value": image}}
        if operation == "CreatePlacementGroup":
            groups.add(name)
        elif operation in ("DescribePlacementGroups", "DeletePlacementGroup"):
            if name not in groups:
                raise ClientError({"Error": {"Code": "InvalidPlacementGroup.Unknown"}}, operation)
            if operation == "DeletePlacementGroup":
                groups.remove(name)
        else:
            if operation == "RunInstances":
                launches.append(arguments)
            return by_moto(client, operation, arguments)
        return {}

    return call


def start(cluster: dict[str, Any], node_type: str) -> dict[str, Any]:
    """Start a node of the bootstrapped cluster by Ray's provider; what EC2 says of it."""
    provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
    kind = "head" if node_type == "head" else "worker"
    node_config = cluster["available_node_types"][node_type]["node_config"]
    nodes = provider.create_node(node_config, {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: node_type}, 1)
    (node_id,) = nodes
    ec2 = boto3.client("ec2", region_name="us-east-1")
    return ec2.describe_instances(InstanceIds=[node_id])["Reservations"][0]["Instances"][0]


def bootstrapped(path: Path) -> dict[str, Any]:
    cluster = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(cluster)
    return bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(cluster))


def test_without_the_setup_nothing_is_started(account, tmp_path):
    with pytest.raises(Exception, match="launch template"):
        bootstrapped(cluster_file(tmp_path))
    names = [group["GroupName"] for group in account.ec2.describe_security_groups()["SecurityGroups"]]
    assert set(names) == {"default"}  # Ray's own would let SSH in from everywhere


def test_nodes_are_as_safe_as_the_file_says(account, tmp_path, capsys):
    path = cluster_file(tmp_path)
    assert aws_setup.main([str(path)]) == 0
    assert f"SSH from {CIDR} only" in capsys.readouterr().out

    cluster = bootstrapped(path)

    resources = {name: one["resources"] for name, one in cluster["available_node_types"].items()}
    assert resources["head"]["CPU"] == 0
    assert (resources["cpu"]["CPU"], resources["cpu"].get("GPU", 0)) == (32, 0)
    assert (resources["gpu"]["CPU"], resources["gpu"]["GPU"]) == (96, 8)
    assert "accelerator_type:A100" in resources["gpu"]
    (group,) = account.ec2.describe_security_groups(GroupNames=["distil-ray"])["SecurityGroups"]
    for name in cluster["available_node_types"]:
        node = start(cluster, name)
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["Placement"]["AvailabilityZone"] == "us-east-1a"
        asked = account.launches[-1]
        assert asked["MetadataOptions"] == {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        }
        assert [disk["Ebs"]["Encrypted"] for disk in asked["BlockDeviceMappings"]] == [True]
        assert asked["IamInstanceProfile"] == {"Name": "distil-ray-head" if name == "head" else "distil-ray-worker"}
        is_spot = name in ("cpu", "gpu-spot")
        assert asked.get("InstanceMarketOptions") == ({"MarketType": "spot"} if is_spot else None)
        (tagged,) = asked["TagSpecifications"]
        assert {"Key": "ray-cluster-name", "Value": "distil-ray"} in tagged["Tags"]  # as the head's policy wants it
        if name.startswith("gpu"):
            assert asked["InstanceType"] == "p4d.24xlarge"
            assert asked["Placement"] == {"GroupName": "distil-ray"}
            (interface,) = asked["NetworkInterfaces"]
            assert interface["InterfaceType"] == "efa"
            assert interface["Groups"] == [group["GroupId"]]
        else:
            assert asked["SecurityGroupIds"] == [group["GroupId"]]


def rules(group: dict[str, Any], direction: str) -> set[tuple[Any, ...]]:
    """Protocol, ports and peer of each rule."""
    return {
        (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort"), peer)
        for rule in group[direction]
        for peers, key in (("IpRanges", "CidrIp"), ("UserIdGroupPairs", "GroupId"))
        for peer in [item[key] for item in rule[peers]]
    }


def test_the_setup_closes_what_was_open_and_follows_changes(account, tmp_path, capsys):
    vpc = account.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group_id = account.ec2.create_security_group(GroupName="distil-ray", Description="open", VpcId=vpc)["GroupId"]
    everywhere = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    account.ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[everywhere])

    iam = boto3.client("iam", region_name="us-east-1")
    iam.create_instance_profile(InstanceProfileName="distil-ray-head")  # as after a setup that was cut off

    for cidr in (CIDR, "198.51.100.0/24"):
        assert aws_setup.main([str(cluster_file(tmp_path, ssh_cidr=cidr))]) == 0
        (group,) = account.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
        assert rules(group, "IpPermissions") == {("-1", None, None, group_id), ("tcp", 22, 22, cidr)}
        assert rules(group, "IpPermissionsEgress") == {("-1", None, None, "0.0.0.0/0"), ("-1", None, None, group_id)}
    (template,) = account.ec2.describe_launch_templates(LaunchTemplateNames=["distil-ray-gpu-node"])["LaunchTemplates"]
    assert (template["DefaultVersionNumber"], template["LatestVersionNumber"]) == (2, 2)

    for role in ("distil-ray-head", "distil-ray-worker"):
        (given,) = iam.get_instance_profile(InstanceProfileName=role)["InstanceProfile"]["Roles"]
        assert given["RoleName"] == role
    assert iam.list_role_policies(RoleName="distil-ray-worker")["PolicyNames"] == ["storage"]
    document = iam.get_role_policy(RoleName="distil-ray-worker", PolicyName="storage")["PolicyDocument"]
    granted = {action for statement in document["Statement"] for action in statement["Action"]}
    assert all(str(one["Resource"]).startswith("arn:aws:s3:::bucket") for one in document["Statement"])
    assert "s3:PutObject" in granted
    head = iam.get_role_policy(RoleName="distil-ray-head", PolicyName="head")["PolicyDocument"]["Statement"]
    unconditional = {action for one in head if "Condition" not in one for action in _list(one["Action"])}
    assert all(action.startswith("ec2:Describe") or action == "ec2:RunInstances" for action in unconditional)
    (passing,) = [one for one in head if one["Action"] == "iam:PassRole"]
    assert passing["Resource"] == "arn:aws:iam::*:role/distil-ray-worker"

    assert aws_setup.main([str(tmp_path / "aws.yaml"), "--delete"]) == 0
    assert aws_setup.main([str(tmp_path / "aws.yaml"), "--delete"]) == 0  # nothing is left to take away
    assert "distil-ray" not in str(account.ec2.describe_security_groups()) + str(
        account.ec2.describe_launch_templates()
    )
    assert "distil-ray" not in str(iam.list_roles()) + str(iam.list_instance_profiles())
    capsys.readouterr()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"ssh_cidr": "SET-ME"}, "metadata.ssh_cidr: is still SET-ME; set it to the addresses you come from"),
        ({"ssh_cidr": "0.0.0.0/0"}, "metadata.ssh_cidr: given 0.0.0.0/0, expected an IPv4 network of /8 or smaller"),
        ({"ssh_cidr": "::/0"}, "metadata.ssh_cidr: given ::/0, expected an IPv4 network"),
        ({"ssh_cidr": "203.0.113.7/24"}, "metadata.ssh_cidr: given '203.0.113.7/24', expected a network such as"),
        ({"storage": "s3://SET-ME/distil-ray"}, "metadata.storage: given 's3://SET-ME/distil-ray', expected s3://buck"),
        ({"storage": "s3://bucket"}, "metadata.storage: given 's3://bucket', expected s3://bucket/prefix"),
    ],
)
def test_what_is_not_set_or_too_open_is_refused(tmp_path, capsys, metadata, message):
    assert aws_setup.main([str(cluster_file(tmp_path, **metadata))]) == 2
    assert message in capsys.readouterr().err


def test_a_bucket_that_is_not_there_is_refused_before_anything_is_made(account, tmp_path, capsys):
    assert aws_setup.main([str(cluster_file(tmp_path, storage="s3://no-such-bucket/x"))]) == 2
    assert "metadata.storage: bucket no-such-bucket cannot be used" in capsys.readouterr().err
    assert "distil-ray" not in str(account.ec2.describe_security_groups())


def test_the_file_as_it_comes_is_refused(capsys):
    assert aws_setup.main([str(CLUSTER / "aws.yaml")]) == 2
    assert "SET-ME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("provider: {}", "'metadata' is missing"), ("- a", "expected a cluster's YAML")],
)
def test_another_file_is_refused(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "x.yaml").write_text(content)
    assert aws_setup.main([str(tmp_path / "x.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_a_zone_without_a_subnet_is_named(account, tmp_path, capsys):
    path = cluster_file(tmp_path)
    path.write_text(path.read_text().replace("us-east-1a", "us-east-1z"))
    assert aws_setup.main([str(path)]) == 2
    assert "us-east-1z has no default subnet" in capsys.readouterr().err


def test_the_example_address_is_one_for_documentation():
    assert ipaddress.ip_network(CIDR).subnet_of(ipaddress.ip_network("203.0.113.0/24"))
