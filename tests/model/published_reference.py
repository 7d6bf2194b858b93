"""S²-FPN written a second time, as plain functions over a published state dict.

An independent reference for the modules in s2fpn_lib/model: it shares no code with them, reads the author's key names
directly, and is a literal transcription of the formulas. Evaluation mode only.
"""

import torch
import torch.nn.functional as F
import torchvision

State = dict[str, torch.Tensor]


class PublishedReference:
    def __init__(self, state: State, revision: str, encoder: str, *, bypass_maxpool: bool = False):
        self.state, self.v2 = state, revision == "v2"
        self.encoder = torchvision.models.get_model(encoder, weights=None).eval()
        stages = {"conv1_x": "conv1", "bn1": "bn1", **{f"conv{i + 1}_x": f"layer{i}" for i in range(1, 5)}}
        renamed = {
            f"{stages[key.split('.')[0]]}.{key.split('.', 1)[1]}": value
            for key, value in state.items()
            if key.split(".")[0] in stages
        }
        missing, unexpected = self.encoder.load_state_dict(renamed, strict=False)
        assert set(missing) == {"fc.weight", "fc.bias"}
        assert not unexpected
        self.bypass_maxpool = bypass_maxpool

    def conv(self, key, x, **options):
        weight = self.state[f"{key}.weight"]
        dilation = options.get("dilation", 1)
        return F.conv2d(x, weight, padding=dilation * (weight.shape[-1] // 2), **options)

    def bn(self, key, x):
        s = self.state
        return F.batch_norm(
            x,
            s[f"{key}.running_mean"],
            s[f"{key}.running_var"],
            s[f"{key}.weight"],
            s[f"{key}.bias"],
            eps=1e-5,
        )

    def block(self, key, x, **options):
        x = self.bn(f"{key}.bn", self.conv(f"{key}.conv", x, **options))
        return F.prelu(x, self.state[f"{key}.act.weight"]) if self.v2 else F.relu(x)

    def crb(self, key, x):
        squeezed = F.adaptive_avg_pool2d(x, 1)
        hidden = F.relu(self.conv(f"{key}.conv_pool.0.conv", squeezed))
        return x * torch.sigmoid(self.conv(f"{key}.conv_pool.2.conv", hidden))

    def ssam(self, key, x):
        return self.ssam_v2(f"{key}.tr.0", x) if self.v2 else self.ssam_v1(key, x)

    def ssam_v1(self, key, x):
        maximum = F.adaptive_max_pool2d(x, (1, x.shape[3]))
        average = F.adaptive_avg_pool2d(x, (1, x.shape[3]))
        m = self.bn(f"{key}.bn_sh1", self.conv(f"{key}.conv_sh", maximum))
        a = self.bn(f"{key}.bn_sh2", self.conv(f"{key}.conv_sh", average))
        gates = torch.softmax(m * a, dim=1)
        strips = gates[:, 0:1] * a + gates[:, 1:2] * m
        gamma = self.state[f"{key}.gamma"]
        return F.relu(gamma * self.conv(f"{key}.fuse.conv", strips) + (1 - gamma) * x)

    def ssam_v2(self, key, x):
        batch, channels, height, width = x.shape
        s, attn = self.state, f"{key}.attn"
        m = self.bn(
            f"{attn}.bn_sh1", self.conv(f"{attn}.conv_sh", F.adaptive_max_pool2d(x, (1, width)))
        )  # (B, C, 1, W)
        q = self.bn(f"{attn}.bn_sh2", self.conv(f"{attn}.conv_sh", x))
        scores = torch.bmm(m.flatten(2).transpose(1, 2), q.flatten(2))  # (B, W, HW)
        p = torch.softmax(scores, dim=1)
        average = F.adaptive_avg_pool2d(x, (1, width))
        v = F.conv2d(average, s[f"{attn}.conv_v.weight"], s[f"{attn}.conv_v.bias"]).flatten(2)
        mixed = torch.bmm(v, p).view(batch, channels, height, width)
        t = F.conv2d(mixed, s[f"{attn}.augmment_conv.weight"], s[f"{attn}.augmment_conv.bias"])
        strips = t[:, 0:1] * q + t[:, 1:2] * m
        gamma = s[f"{attn}.gamma"]
        gated = F.relu(gamma * self.conv(f"{attn}.fuse.conv", strips) + (1 - gamma) * x)
        y = x + self.conv(f"{attn}.fuse_out.conv", gated)
        branches = [self.block(f"{key}.mlp.dconv{i}", y, dilation=2 * i) for i in (1, 2)]
        return y + torch.sigmoid(self.conv(f"{key}.mlp.fuse.conv", torch.cat(branches, dim=1)))

    def apf(self, key, high, low):
        lateral = self.block(f"{key}.lateral_low", low)
        up = F.interpolate(high, size=lateral.shape[2:], mode="bilinear", align_corners=False)
        refined = self.block(f"{key}.FRB.1", self.block(f"{key}.FRB.0", torch.cat([lateral, up], dim=1)))
        fused = self.ssam(f"{key}.sa", refined) * self.block(f"{key}.conv_high", up)
        fused = fused + self.crb(f"{key}.ca", refined) * self.block(f"{key}.conv_low", lateral)
        auxiliary = self.conv(f"{key}.classifier.2.conv", self.block(f"{key}.classifier.0", fused))
        return self.block(f"{key}.apf", fused), auxiliary

    def gfu(self, key, p, f):
        f = F.interpolate(f, size=p.shape[2:], mode="bilinear", align_corners=True)
        f = F.relu(self.conv(f"{key}.conv2.0.conv", f))
        p = self.block(f"{key}.conv1", p)
        h = self.block(f"{key}.conv3", f + p)
        if not self.v2:
            return h
        h1, h2 = h.chunk(2, dim=1)
        gate = torch.sigmoid(self.bn(f"{key}.s2.1", self.conv(f"{key}.s2.0.conv", h2)))
        return self.block(f"{key}.fuse", torch.cat([self.block(f"{key}.s1", h1) * f, gate * p], dim=1))

    @torch.inference_mode()
    def __call__(self, image):
        net = self.encoder
        x = net.relu(net.bn1(net.conv1(image)))
        if not self.bypass_maxpool:
            x = net.maxpool(x)
        levels = []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            levels.append(x)
        if levels[0].shape[1] == 256:  # bottleneck encoders are brought to the basic widths
            levels = [self.block(f"down{i + 2}", level) for i, level in enumerate(levels)]
        x2, x3, x4, x5 = levels
        out, coarse = {}, self.block("cfgb.0", x5, stride=2, groups=512)
        for i, lateral in enumerate((x5, x4, x3, x2), start=1):
            coarse, out[f"apf{i}_aux"] = self.apf(f"apf{i}", coarse, lateral)
            out[f"apf{i}"] = coarse
        result = self.block("fab.0", x5, groups=256)
        for i in (4, 3, 2, 1):
            result = self.gfu(f"gfu{i}", out[f"apf{5 - i}"], result)
            out[f"gfu{i}"] = result
        logits = self.conv("seghead.fc.conv" if self.v2 else "classifier.fc.conv", result)
        out["logits"] = F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=True)
        return out
