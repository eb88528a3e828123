"""The formulas of the ops in TeX, as their pages show them; the definitions are in refsd/ops/.

An op without a line here shows the first line of its docstring instead.
"""

FORMULAS = {
    "linear": r"y_{\ldots,o} = \sum_{k} x_{\ldots,k}\, W_{o,k} + b_o, \qquad"
              r" y = x W^{\mathsf T} + b",
    "linear_add": r"y_{\ldots,o} = \sum_{k} x_{\ldots,k}\, W_{o,k} + b_o + a_{\ldots,o}",
    "linear_geglu": r"y = h\,g\,\Phi(g), \qquad [\,h \mid g\,] = x W^\top + b",
    "matmul": r"y_{\ldots,i,j} = \sum_{k} a_{\ldots,i,k}\, b_{\ldots,k,j}",
    "conv2d": r"y_{n,o,i,j} = b_o + \sum_{c,u,v} w_{o,c,u,v}\;"
              r" x_{n,\;c,\;i s + u d - \mathrm{top},\;j s + v d - \mathrm{left}}",
    "attention": r"y = \operatorname{softmax}\left(\frac{q k^{\mathsf T}}{\sqrt d}"
                 r" + \mathrm{mask}\right) v, \qquad d = \frac{C}{\mathrm{heads}},"
                 r" \quad\text{in each head}",

    "group_norm": r"y = \mathrm{weight}_c\,\frac{x - \mu}{\sqrt{\sigma^2 + \mathrm{eps}}}"
                  r" + \mathrm{bias}_c, \qquad \mu = \operatorname{mean}_g(x),"
                  r" \quad \sigma^2 = \operatorname{mean}_g\left((x - \mu)^2\right)",
    "conv2d_add": r"y = \operatorname{conv2d}(x) + \mathrm{addend}",
    "upsample_conv2d": r"y = \operatorname{conv2d}(\operatorname{upsample\_nearest}(x))",
    "group_norm_silu": r"y = h\,\sigma(h), \qquad h = \operatorname{group\_norm}(x)",
    "layer_norm": r"y_k = \mathrm{weight}_k\,\frac{x_k - \mu}{\sqrt{\sigma^2 + \mathrm{eps}}}"
                  r" + \mathrm{bias}_k, \qquad \mu = \frac{1}{K}\sum_{k} x_k,"
                  r" \quad \sigma^2 = \frac{1}{K}\sum_{k} (x_k - \mu)^2",
    "rms_norm": r"y_k = \frac{x_k}{\sqrt{\frac{1}{K}\sum_{j} x_j^2 + \mathrm{eps}}}"
                r"\,\mathrm{weight}_k",

    "silu": r"y = x\,\sigma(x) = \frac{x}{1 + e^{-x}}",
    "quick_gelu": r"y = x\,\sigma(1.702\,x) = \frac{x}{1 + e^{-1.702\,x}}",
    "gelu": r"y = x\,\Phi(x) = \frac{x}{2}\left(1 + \operatorname{erf}\frac{x}{\sqrt 2}\right)",
    "gelu_tanh": r"y = \frac{x}{2}\left(1 + \tanh\left(\sqrt{\frac{2}{\pi}}"
                 r"\left(x + 0.044715\,x^3\right)\right)\right)",
    "geglu": r"y = h\,g\,\Phi(g), \qquad x = [\,h \mid g\,]",
    "softmax": r"y_i = \frac{e^{x_i - m}}{\sum_{j} e^{x_j - m}}, \qquad m = \max_j x_j",

    "embedding": r"y_{\ldots,k} = \mathrm{weight}_{\mathrm{ids}_{\ldots},\,k}",
    "gather": r"y_{n,d} = x_{n,\,\mathrm{index}_n,\,d}",
    "timestep_embedding": r"y_n = \left[\,\sin(t_n w) \mid \cos(t_n w)\,\right], \qquad"
                          r" w_i = 10000^{-i / (\mathrm{dim}/2 - \mathrm{freq\_shift})}",
    "rope": r"(a, b) \mapsto (a\,\cos\varphi - b\,\sin\varphi,\; a\,\sin\varphi + b\,\cos\varphi),"
            r" \qquad \varphi = \mathrm{position}\cdot\mathrm{base}^{-2 i / D}",

    "upsample_nearest": r"y_{i,j} = x_{\operatorname{floor}(i H / \mathrm{height}),\;"
                        r"\operatorname{floor}(j W / \mathrm{width})}",
    "upsample_bilinear": r"y_{i,j} = \sum_{a,b \in \{0,1\}} \left|1 - a - f_i\right|"
                         r" \left|1 - b - g_j\right| x_{p_i + a,\;q_j + b}, \qquad"
                         r" p_i = \operatorname{floor}(\mathrm{source}_i),"
                         r" \; f_i = \mathrm{source}_i - p_i",

    "to_tokens": r"y_{n,\;i W + j,\;c} = x_{n,c,i,j}",
    "to_image": r"y_{n,c,i,j} = x_{n,\;i\,\mathrm{width} + j,\;c}",
    "concat": r"y = [\,\mathrm{arrays}_0 \mid \mathrm{arrays}_1 \mid \cdots\,]",
    "slice": r"y_{\ldots,i,\ldots} = x_{\ldots,\,\mathrm{start} + i,\,\ldots}, \qquad"
             r" 0 \le i < \mathrm{stop} - \mathrm{start}",
    "pad": r"y_{i,j,\ldots} = \begin{cases} x_{i - b_0,\; j - b_1,\;\ldots}"
           r" & \text{inside } x \\ 0 & \text{outside} \end{cases}"
           r" \qquad b_a = \mathrm{widths}_{a,0}",
    "transpose": r"y_{i_{p(0)},\,i_{p(1)},\,\ldots} = x_{i_0,\,i_1,\,\ldots}, \qquad"
                 r" p = \mathrm{axes}",
    "reshape": r"\operatorname{vec}(y) = \operatorname{vec}(x) \quad \text{(row by row)}",

    "add": r"y = a + b",
    "sub": r"y = a - b",
    "mul": r"y = a\,b",
    "div": r"y = \frac{a}{b}",
    "exp": r"y = e^{x}",
    "sqrt": r"y = \sqrt{x}",
    "tanh": r"y = \tanh x = \frac{e^{x} - e^{-x}}{e^{x} + e^{-x}}",
    "clamp": r"y = \min(\max(x, \mathrm{low}), \mathrm{high})",
}
