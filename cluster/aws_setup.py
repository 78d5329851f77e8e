"""What a cluster's YAML names but Ray would not make, or would make too open: security group, roles, launch templates.

    python cluster/aws_setup.py cluster/aws.yaml            make it, or bring it up to date
    python cluster/aws_setup.py cluster/aws.yaml --delete   take it away again, after `ray down`

Safe to repeat. Takes region, zone, names and instance types from the YAML, whose `metadata` says from where SSH may
come and where runs and texts lie. Needs `pip install '.[aws]'` and credentials that may manage EC2 and IAM.
"""

import argparse
import ipaddress
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.exceptions import BotoCoreError, ClientError

from distil_ray.cli import main_of
from distil_ray.errors import InputError, RunError

_PLACEHOLDER = "SET-ME"
_POLICIES = Path(__file__).parent / "iam"
# Ubuntu 22.04 with Docker, the NVIDIA driver and its container runtime, and EFA; AWS keeps the newest one's id here.
_IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"


@dataclass(frozen=True)
class Plan:
    """What to make.

    Attributes:
        name: of the cluster; all that is made is called so, or begins so.
        ssh_cidr: addresses from which SSH is let in.
        gpu_instance_type: of the nodes that get a network interface of their own kind.
    """

    name: str
    region: str
    zone: str
    ssh_cidr: str
    bucket: str
    prefix: str
    gpu_instance_type: str


def read_plan(path: Path) -> Plan:
    """Read the cluster's YAML.

    Raises:
        InputError: it cannot be read, lacks something, or still has a placeholder.
    """
    try:
        cluster = yaml.safe_load(path.read_text(encoding="utf-8"))
        provider, metadata = cluster["provider"], cluster["metadata"]
        gpu = cluster["available_node_types"]["gpu"]["node_config"]["InstanceType"]
        bucket, prefix = _storage(str(metadata["storage"]))
        return Plan(
            name=cluster["cluster_name"],
            region=provider["region"],
            zone=provider["availability_zone"],
            ssh_cidr=_cidr(str(metadata["ssh_cidr"])),
            bucket=bucket,
            prefix=prefix,
            gpu_instance_type=gpu,
        )
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a cluster's YAML like cluster/aws.yaml, but {error} is missing") from error


def _cidr(text: str) -> str:
    key = "metadata.ssh_cidr"
    if text == _PLACEHOLDER:
        raise InputError(f"{key}: is still {text}; set it to the addresses you come from, such as 203.0.113.7/32")
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise InputError(f"{key}: given {text!r}, expected a network such as 203.0.113.7/32: {error}") from error
    if network.version == 6 or network.prefixlen < 8:
        raise InputError(f"{key}: given {text}, expected an IPv4 network of /8 or smaller, not the world")
    return text


def _storage(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([\w./-]*\w)/?", text)
    if _PLACEHOLDER in text or not found:
        raise InputError(f"metadata.storage: given {text!r}, expected s3://bucket/prefix, a bucket that exists")
    return found[1], found[2]


class Account:
    """The AWS account, in which each method makes one thing or brings it up to date."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        session = boto3.Session(region_name=plan.region)
        self._ec2, self._iam, self._s3, self._ssm = (session.client(name) for name in ("ec2", "iam", "s3", "ssm"))

    def check_bucket(self) -> None:
        """Raise InputError unless the bucket is there and can be reached."""
        try:
            self._s3.head_bucket(Bucket=self._plan.bucket)
        except ClientError as error:
            raise InputError(
                f"metadata.storage: bucket {self._plan.bucket} cannot be used: {error}; `aws s3 mb` makes one"
            ) from error

    def subnet(self) -> tuple[str, str]:
        """The zone's default subnet, whose nodes get public addresses, and its VPC."""
        zone = self._plan.zone
        filters = [{"Name": "availability-zone", "Values": [zone]}, {"Name": "default-for-az", "Values": ["true"]}]
        subnets = self._ec2.describe_subnets(Filters=filters)["Subnets"]
        if not subnets:
            raise InputError(f"provider.availability_zone: {zone} has no default subnet; name another zone")
        return subnets[0]["SubnetId"], subnets[0]["VpcId"]

    def security_group(self, vpc: str) -> str:
        """All traffic among the nodes, SSH from the given addresses, and nothing else from outside."""
        group = self._group_of(vpc)
        if group is None:
            description = "Nodes of a Ray cluster: SSH from named addresses only"
            created = self._ec2.create_security_group(GroupName=self._plan.name, Description=description, VpcId=vpc)
            group = created["GroupId"]
        among = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": self._plan.ssh_cidr}]}
        out = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
        self._set_rules(group, "ingress", [among, ssh])
        self._set_rules(group, "egress", [among, out])  # EFA asks for a rule to the group itself
        return str(group)

    def _group_of(self, vpc: str) -> str | None:
        filters = [{"Name": "group-name", "Values": [self._plan.name]}, {"Name": "vpc-id", "Values": [vpc]}]
        groups = self._ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
        return groups[0]["GroupId"] if groups else None

    def _set_rules(self, group: str, direction: str, rules: list[Mapping[str, Any]]) -> None:
        """Leave the group with exactly these rules; what is there already is not interrupted."""
        described = self._ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
        before = described["IpPermissions" if direction == "ingress" else "IpPermissionsEgress"]
        wanted, there = list(_one_by_one(rules)), list(_one_by_one(before))
        for verb, changes in (
            ("revoke", [rule for rule in there if rule not in wanted]),
            ("authorize", [rule for rule in wanted if rule not in there]),
        ):
            if changes:
                getattr(self._ec2, f"{verb}_security_group_{direction}")(GroupId=group, IpPermissions=changes)

    def roles(self) -> None:
        """A role and an instance profile for the head and for the other nodes, with the policies beside this file."""
        for role, policies in self._roles().items():
            if not self._exists(self._iam.get_role, RoleName=role):
                self._iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(_ASSUMED_BY_EC2))
            for policy in policies:
                document = (_POLICIES / f"{policy}.json").read_text(encoding="utf-8")
                for word, value in self._words().items():
                    document = document.replace(word, value)
                self._iam.put_role_policy(RoleName=role, PolicyName=policy, PolicyDocument=document)
            if not self._exists(self._iam.get_instance_profile, InstanceProfileName=role):
                self._iam.create_instance_profile(InstanceProfileName=role)
            if not self._iam.get_instance_profile(InstanceProfileName=role)["InstanceProfile"]["Roles"]:
                self._iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)

    def _roles(self) -> dict[str, tuple[str, ...]]:
        return {f"{self._plan.name}-head": ("head", "storage"), f"{self._plan.name}-worker": ("storage",)}

    def _words(self) -> dict[str, str]:
        """What stands for what in the policies."""
        return {"CLUSTER": self._plan.name, "BUCKET": self._plan.bucket, "PREFIX": self._plan.prefix}

    def allow_spot(self) -> None:
        """The role that AWS itself takes on for spot nodes, once an account."""
        try:
            self._iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("InvalidInput", "EntityAlreadyExists"):
                raise

    def placement_group(self) -> None:
        """GPU nodes close to each other."""
        if not self._exists(self._ec2.describe_placement_groups, GroupNames=[self._plan.name]):
            self._ec2.create_placement_group(GroupName=self._plan.name, Strategy="cluster")

    def image(self) -> str:
        """The id of the newest image of the kind that the nodes want."""
        return str(self._ssm.get_parameter(Name=_IMAGE_PARAMETER)["Parameter"]["Value"])

    def launch_templates(self, image: str, subnet: str, group: str) -> None:
        """What depends on the account: image, subnet, security group; for GPU nodes an EFA interface if they can.

        One interface of 100 Gbit/s, though some types have 4 or 32: EC2 refuses AssociatePublicIpAddress for several,
        and without a public address a node of the default subnet reaches neither its image nor S3.
        """
        types = self._ec2.describe_instance_types(InstanceTypes=[self._plan.gpu_instance_type])["InstanceTypes"]
        has_efa = types[0]["NetworkInfo"].get("EfaSupported", False)
        interface = {
            "DeviceIndex": 0,
            "SubnetId": subnet,
            "Groups": [group],
            "AssociatePublicIpAddress": True,
            "DeleteOnTermination": True,
            **({"InterfaceType": "efa"} if has_efa else {}),
        }
        self._launch_template(f"{self._plan.name}-node", {"ImageId": image, "SecurityGroupIds": [group]})
        self._launch_template(f"{self._plan.name}-gpu-node", {"ImageId": image, "NetworkInterfaces": [interface]})

    def _launch_template(self, name: str, data: Mapping[str, Any]) -> None:
        if not self._exists(self._ec2.describe_launch_templates, LaunchTemplateNames=[name]):
            self._ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
            return
        created = self._ec2.create_launch_template_version(LaunchTemplateName=name, LaunchTemplateData=data)
        version = str(created["LaunchTemplateVersion"]["VersionNumber"])
        self._ec2.modify_launch_template(LaunchTemplateName=name, DefaultVersion=version)

    def delete(self) -> None:
        """Take away everything that was made; the bucket stays."""
        for name in (f"{self._plan.name}-node", f"{self._plan.name}-gpu-node"):
            if self._exists(self._ec2.describe_launch_templates, LaunchTemplateNames=[name]):
                self._ec2.delete_launch_template(LaunchTemplateName=name)
        self._exists(self._ec2.delete_placement_group, GroupName=self._plan.name)
        for role, policies in self._roles().items():
            self._exists(self._iam.remove_role_from_instance_profile, InstanceProfileName=role, RoleName=role)
            self._exists(self._iam.delete_instance_profile, InstanceProfileName=role)
            for policy in policies:
                self._exists(self._iam.delete_role_policy, RoleName=role, PolicyName=policy)
            self._exists(self._iam.delete_role, RoleName=role)
        group = self._group_of(self.subnet()[1])
        if group is not None:
            self._ec2.delete_security_group(GroupId=group)

    @staticmethod
    def _exists(call: Any, **arguments: Any) -> bool:
        """Make the call and return whether what it is about was there."""
        try:
            call(**arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "NoSuchEntity" or "NotFound" in code or code.endswith(".Unknown"):
                return False
            raise
        return True


_ASSUMED_BY_EC2 = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def _one_by_one(rules: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rules with one address range or group each; AWS puts those of the same ports together."""
    for rule in rules:
        ports = {name: rule[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in rule}
        for kind, key in _PEERS.items():
            for peer in rule.get(kind, ()):
                yield ports | {kind: [{key: peer[key]}]}


_PEERS = {
    "IpRanges": "CidrIp",
    "Ipv6Ranges": "CidrIpv6",
    "PrefixListIds": "PrefixListId",
    "UserIdGroupPairs": "GroupId",
}


def set_up(plan: Plan) -> None:
    """Make everything, and say so."""
    account = Account(plan)
    account.check_bucket()
    subnet, vpc = account.subnet()
    group = account.security_group(vpc)
    print(f"security group {plan.name} ({group}): SSH from {plan.ssh_cidr} only, all traffic among the nodes")
    account.roles()
    storage = f"s3://{plan.bucket}/{plan.prefix}"
    print(f"roles {plan.name}-head, {plan.name}-worker: read and write {storage}; the head starts and ends nodes")
    account.allow_spot()
    account.placement_group()
    image = account.image()
    account.launch_templates(image, subnet, group)
    print(f"launch templates {plan.name}-node, {plan.name}-gpu-node: image {image}, subnet {subnet}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 AWS refused something, 2 a mistake in the YAML."""
    return main_of("aws_setup", _set_up, argv, after_interrupt="the same command does the rest")


def _set_up(argv: list[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python cluster/aws_setup.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cluster", type=Path, metavar="FILE", help="the cluster's YAML, such as cluster/aws.yaml")
    parser.add_argument("--delete", action="store_true", help="take everything away again")
    arguments = parser.parse_args(argv)
    plan = read_plan(arguments.cluster)
    try:
        if arguments.delete:
            Account(plan).delete()
            print(f"{plan.name}: all is taken away but the bucket {plan.bucket}")
        else:
            set_up(plan)
            print(f"next: ray up {arguments.cluster}")
    except (BotoCoreError, ClientError) as error:
        raise RunError(f"AWS: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
